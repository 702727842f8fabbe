"""distnn: distributed multi-GPU training runtime in pure Python, with NNabla's API.

import distnn as nn
import distnn.functions as F
import distnn.parametric_functions as PF
import distnn.solvers as S
"""

from . import calling as _calling
from . import operators as _operators
from . import profiler
from .autotune import (
    get_autotune,
    get_autotune_choices,
    set_autotune,
    set_autotune_choices,
)
from .capture import get_capture, set_capture
from .communicators.data_parallel import data_parallel
from .context import (
    Context,
    auto_forward,
    context_scope,
    get_auto_forward,
    get_current_context,
    no_grad,
    set_auto_forward,
    set_default_context,
)
from .execution import forward_all
from .grad import grad
from .hooks import (
    set_function_post_hook,
    set_function_pre_hook,
    set_solver_post_hook,
    set_solver_pre_hook,
    unset_function_post_hook,
    unset_function_pre_hook,
    unset_solver_post_hook,
    unset_solver_pre_hook,
)
from .interchange import from_dlpack
from .kernels import get_cpu_kernels, set_cpu_kernels
from .memory_budget import memory_budget, set_memory_budget
from .ndarray import NdArray
from .parameter import (
    clear_parameters,
    get_current_parameter_scope,
    get_parameters,
    parameter_scope,
)
from .parameter_file import load_parameters, save_parameters
from .random import seed
from .recompute import recompute, recompute_fn, set_global_recompute
from .step import step
from .threads import get_num_threads, set_num_threads
from .variable import Variable

__version__ = "0.1.0"
