"""Communicators `C.*`: ranks that train one network, over MPI processes or threads."""

from .buckets import AllReduceCallback
from .communicator import DataParallelCommunicator, MultiProcessDataParallelCommunicator
from .compression import HalfCompression
from .powersgd import PowerSGD
from .sharded_solver import ShardedSolver
from .threads import InjectedFailure, run_threads
from .throttled import Throttled
from .topology import HierarchicalAllReduce, TorusAllReduce

# NNabla's other names; most of its examples use the misspelt one.
MultiProcessCommunicator = MultiProcessDataParallelCommunicator
MultiProcessDataParalellCommunicator = MultiProcessDataParallelCommunicator
Comm = Dist = MultiProcessDataParallelCommunicator
