"""Variable: what users hold of a value in a graph: data, grad, flags and operators."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .context import current_world, launch_step
from .errors import ArgumentError, DtypeError, GraphError, ShapeError
from .execution import backward, forward
from .graph import Hook, Node, nodes_of
from .ndarray import NdArray, check_shape
from .value import Value, version


class Variable:
    """A value of a graph, with data and gradient.

    Args:
        shape: shape of data and gradient; `()` is a scalar.
        need_grad: whether a gradient is wanted: True, False, or None to leave it to the graph
            (False for a leaf, true for a result if any input wants one).

    >>> import distnn as nn, distnn.functions as F
    >>> x = nn.Variable((2,), need_grad=True)
    >>> x.d = [1., 2.]
    >>> y = F.sum(x * x)
    >>> y.forward()
    >>> x.grad.zero()
    >>> y.backward()
    >>> x.g
    array([2., 4.], dtype=float32)
    """

    __slots__ = ("__weakref__", "_data", "_value", "info")

    __array_ufunc__ = None  # `ndarray + Variable` reaches our reflected operators

    def __init__(self, shape: Sequence[int] = (), need_grad: bool | None = None) -> None:
        dimensions = check_shape("Variable", shape)
        self._value = Value(dimensions, _check_need_grad(need_grad))
        self._data: NdArray | None = None  # holds the data of a dynamic graph's result
        self.info: Any = None

    @classmethod
    def _of(cls, value: Value, data: NdArray | None = None) -> Variable:
        variable = cls.__new__(cls)
        variable._value = value
        variable._data = (
            data if data is not None or value._weak_data is None else value._weak_data()
        )
        variable.info = None
        return variable

    @staticmethod
    def from_numpy_array(data: Any, grad: Any = None, need_grad: bool | None = None) -> Variable:
        """A leaf with a copy of `data`, of the same dtype, and of `grad` if given."""
        array = NdArray.from_numpy_array(np.asarray(data))
        variable = Variable(array.shape, need_grad)
        variable.data = array
        if grad is not None:
            variable.grad = NdArray.from_numpy_array(np.asarray(grad))
        return variable

    # -- what it is -----------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, ...]:
        return self._value.shape

    @property
    def size(self) -> int:
        return math.prod(self._value.shape)

    @property
    def ndim(self) -> int:
        return len(self._value.shape)

    def size_from_axis(self, axis: int = -1) -> int:
        """Number of elements from `axis` on; the whole size for a negative axis."""
        return math.prod(self._value.shape[max(axis, 0) :])

    @property
    def name(self) -> str:
        return self._value.name

    @name.setter
    def name(self, name: str) -> None:
        self._value.name = str(name)

    @property
    def need_grad(self) -> bool:
        """Whether backward computes a gradient for it; assign True, False or None (inherit)."""
        return self._value.need_grad

    @need_grad.setter
    def need_grad(self, need_grad: bool | None) -> None:
        need = _check_need_grad(need_grad)
        if need != self._value.need:
            launch_step()
            self._value.need = need
            version.changed()

    @property
    def persistent(self) -> bool:
        """Whether data and gradient survive the clearing of buffers."""
        return self._value.persistent

    @persistent.setter
    def persistent(self, persistent: bool) -> None:
        if bool(persistent) != self._value.persistent:
            launch_step()
            self._value.persistent = bool(persistent)
            version.changed()

    @property
    def recompute(self) -> bool:
        """Whether backward computes it again instead of keeping it (`nn.recompute`).

        In dynamic mode it has to be set before the value is computed, best by `nn.recompute()`;
        later it changes nothing. For leaves it means nothing.
        """
        return self._value.recompute

    @recompute.setter
    def recompute(self, recompute: bool) -> None:
        if bool(recompute) != self._value.recompute:
            launch_step()
            self._value.mark_recompute(bool(recompute))

    @property
    def parent(self) -> Node | None:
        """The call that computes this value; None for a leaf. Assign None to cut the graph here."""
        return self._value.parent

    @parent.setter
    def parent(self, parent: Node | None) -> None:
        if parent is not None and not isinstance(parent, Node):
            raise DtypeError(f"[Variable.parent] is {type(parent).__name__}; assign a Node or None")
        launch_step()
        self._value.parent = parent
        version.changed()

    @property
    def rank(self) -> int:
        """Length of the longest path to it from a leaf."""
        ranks: dict[Node, int] = {}
        for node in nodes_of([self._value]):
            parents = [v.parent for v in node.sources if v is not None and v.parent is not None]
            ranks[node] = 1 + max((ranks[p] for p in parents), default=0)
        parent = self._value.parent
        return 0 if parent is None else ranks[parent]

    def __repr__(self) -> str:
        name = f" {self.name!r}" if self.name else ""
        return f"<Variable{name}({self.shape}, need_grad={self.need_grad}) at {id(self):#x}>"

    def __eq__(self, other: object) -> bool:
        """True for Variables over the same data, whatever their place in the graph."""
        return isinstance(other, Variable) and self.data == other.data

    def __hash__(self) -> int:
        return hash(self.data)

    def __bool__(self) -> bool:
        raise DtypeError("[Variable] has no truth value; read a number with `bool(x.d)`")

    # -- data and gradient ------------------------------------------------------------------------

    @property
    def data(self) -> NdArray:
        return self._value.data

    @data.setter
    def data(self, data: NdArray) -> None:
        launch_step()
        self._value.data = self._checked("data", data)
        self._data = data

    @property
    def grad(self) -> NdArray:
        return self._value.grad

    @grad.setter
    def grad(self, grad: NdArray) -> None:
        launch_step()
        self._value.grad = self._checked("grad", grad)

    def _checked(self, name: str, array: Any) -> NdArray:
        if not isinstance(array, NdArray):
            raise DtypeError(
                f"[Variable.{name}] is {type(array).__name__}; assign an NdArray, or values by "
                f".{name[0]}"
            )
        if array.shape != self.shape:
            raise ShapeError(
                f"[Variable.{name}] the array has shape {array.shape} but the Variable {self.shape}"
            )
        return array

    @property
    def d(self) -> np.ndarray:
        """The data as a NumPy array over the same memory; assigning copies values in."""
        return self._value.data.data

    @d.setter
    def d(self, values: Any) -> None:
        self._value.data.data = values

    @property
    def g(self) -> np.ndarray:
        """The gradient as a NumPy array over the same memory; assigning copies values in.

        Reading it counts as writing: a solver then no longer skips the parameter as untouched.
        Use `grad.get_data("r")` to only look.
        """
        return self._value.grad.data

    @g.setter
    def g(self, values: Any) -> None:
        self._value.grad.data = values

    def apply(self, **kwargs: Any) -> Variable:
        """Set attributes and return itself: `F.relu(x).apply(persistent=True)`."""
        for name, value in kwargs.items():
            if not hasattr(type(self), name):
                raise ArgumentError(f"[Variable.apply] a Variable has no attribute {name!r}")
            setattr(self, name, value)
        return self

    # -- graph ------------------------------------------------------------------------------------

    def forward(
        self,
        clear_buffer: bool = False,
        clear_no_need_grad: bool = False,
        function_pre_hook: Hook | None = None,
        function_post_hook: Hook | None = None,
    ) -> None:
        """Compute this value from the leaves, function by function, in the order of creation.

        Args:
            clear_buffer: free every intermediate result as soon as nobody reads it. For inference:
                backward is not possible afterwards.
            clear_no_need_grad: free intermediate results that backward will not read.
            function_pre_hook, function_post_hook: called with each function before and after it.
        """
        if self._value.parent is None:
            raise GraphError(
                "[Variable.forward] this Variable is a leaf: no function computes it; call "
                "forward() on a result"
            )
        hooks = (function_pre_hook, function_post_hook)
        forward([self._value], clear_buffer, clear_no_need_grad, hooks)

    def backward(
        self,
        grad: Any = 1,
        clear_buffer: bool = False,
        communicator_callbacks: Any = None,
        function_pre_hook: Hook | None = None,
        function_post_hook: Hook | None = None,
    ) -> None:
        """Compute the gradients of the leaves that need one, and add them to their `grad`.

        Args:
            grad: gradient of this value: a number for every element, an array, or None to use the
                present `g`. It is not stored.
            clear_buffer: free results and gradients of intermediate values on the way.
            communicator_callbacks: one callback or several, told of each leaf gradient that is
                complete: `comm.all_reduce_callback(...)`. Default: none, or what
                `nn.data_parallel` has set up.
            function_pre_hook, function_post_hook: called with each function before and after it.

        Raises: GraphError if no leaf needs a gradient; ClearedError if what a gradient reads was
            never computed or is freed.
        """
        if communicator_callbacks is None:
            communicator_callbacks = current_world().backward_callbacks
        elif not isinstance(communicator_callbacks, list | tuple):
            communicator_callbacks = [communicator_callbacks]
        hooks = (function_pre_hook, function_post_hook)
        backward(self._value, self._seed(grad), clear_buffer, communicator_callbacks, hooks)

    def _seed(self, grad: Any) -> Any:
        """What backward starts from: a number, or an array of this shape."""
        if type(grad) is int or type(grad) is float:
            return grad
        if grad is None:
            return self.grad.read(self.grad.dtype)
        if isinstance(grad, Variable):
            grad = grad.data
        if isinstance(grad, NdArray):
            grad = grad.read(grad.dtype)
        if not np.isscalar(grad) and np.shape(grad) != self.shape:
            raise ShapeError(
                f"[Variable.backward] grad has shape {np.shape(grad)} but the Variable {self.shape}"
            )
        return grad

    def get_unlinked_variable(self, need_grad: bool | None = None) -> Variable:
        """A leaf over the same data and gradient: backward stops here.

        Args:
            need_grad: of the new Variable; None takes this one's.
        """
        own = self._value
        need = own.need_grad if need_grad is None else _check_need_grad(need_grad)
        value = Value(own.shape, need)
        value._data, value._grad, value.name = own.data, own.grad, own.name
        return Variable._of(value, value._data)

    unlinked = get_unlinked_variable

    def no_grad(self) -> Variable:
        """A leaf over the same data that needs no gradient."""
        return self.get_unlinked_variable(need_grad=False)

    def reshape(self, shape: Sequence[int], unlink: bool = False) -> Variable:
        """This value in another shape; with `unlink` a leaf over the same data and gradient."""
        if not unlink:
            from .functions import reshape

            return reshape(self, shape)
        dimensions = check_shape("Variable.reshape", shape, self.size)
        value = Value(dimensions, self.need_grad)
        value._data = self.data.view(dimensions)
        value._grad = self.grad.view(dimensions)
        return Variable._of(value)

    def reset_shape(self, shape: Sequence[int], force: bool = False) -> None:
        """Give a leaf another shape; `force` allows another size, which drops its data."""
        dimensions = check_shape("Variable.reset_shape", shape)
        if dimensions == self.shape:
            return
        launch_step()
        if self._value.parent is not None:
            raise GraphError("[Variable.reset_shape] only a leaf can change its shape")
        if math.prod(dimensions) == self.size:
            self._value._data = self.data.view(dimensions)
            self._value._grad = self.grad.view(dimensions)
        elif force:
            self._value._data = self._value._grad = None
        else:
            raise ShapeError(
                f"[Variable.reset_shape] shape {dimensions} has another size than {self.shape}; "
                "pass force=True to drop the data"
            )
        self._value.shape = dimensions
        version.changed()

    def visit(self, f: Callable[[Node], object]) -> None:
        """Call `f` with every function this value depends on, in the order of computation."""
        for node in nodes_of([self._value]):
            f(node)

    def visit_check(self, f: Callable[[Node], bool]) -> bool:
        """True if `f` is true for any function this value depends on."""
        return any(f(node) for node in nodes_of([self._value]))

    def clear_all_graph_links(self) -> None:
        """Cut every link of the graph that ends here, so that its memory can go."""
        launch_step()
        for node in nodes_of([self._value]):
            node.release()
            for value in node.sources:
                if value is not None:
                    value.parent = None
        self._value.parent = None
        version.changed()

    if TYPE_CHECKING:  # operators.py sets them

        def __add__(self, other: Any) -> Any: ...
        def __radd__(self, other: Any) -> Any: ...
        def __sub__(self, other: Any) -> Any: ...
        def __rsub__(self, other: Any) -> Any: ...
        def __mul__(self, other: Any) -> Any: ...
        def __rmul__(self, other: Any) -> Any: ...
        def __truediv__(self, other: Any) -> Any: ...
        def __rtruediv__(self, other: Any) -> Any: ...
        def __pow__(self, other: Any) -> Any: ...
        def __rpow__(self, other: Any) -> Any: ...
        def __matmul__(self, other: Any) -> Any: ...
        def __neg__(self) -> Any: ...
        def __getitem__(self, key: Any) -> Any: ...


def _check_need_grad(need_grad: object) -> bool | None:
    if need_grad is None or need_grad is True or need_grad is False:
        return need_grad
    if isinstance(need_grad, np.bool_ | int):
        return bool(need_grad)
    raise ArgumentError(f"[need_grad] is {need_grad!r}; pass True, False or None")
