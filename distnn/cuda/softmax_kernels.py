"""Kernels of softmax, of its logarithm and of its cross entropy, and of their gradients.

All arithmetic is in float, of float64 in double.
"""

from __future__ import annotations

from collections.abc import Iterator

from .kernels import FLOATS
from .numbers import lanes_of
from .rows import RowMap

_STATES = """
// The sum of exp(x - peak).
struct Exponentials {
  W peak, sum;
  static __device__ Exponentials empty() { return Exponentials{lowest(), 0}; }
};
struct Sum {
  W sum;
  static __device__ Sum empty() { return Sum{0}; }
};
struct Label {
  W peak, dy, scale;
  long long target;
  static __device__ Label empty() { return Label{0, 0, 0, -1}; }
};
template <int M, class Threads>
__device__ void join(const Threads& threads, Exponentials (&states)[M]) {
  W values[M];
  for (int l = 0; l < M; ++l) values[l] = states[l].peak;
  threads.reduce(values, Greater());
  for (int l = 0; l < M; ++l) {
    const W own = states[l].peak;
    states[l].peak = values[l];
    values[l] = own == values[l] ? states[l].sum : states[l].sum * exponential(own - values[l]);
  }
  threads.reduce(values, Plus());
  for (int l = 0; l < M; ++l) states[l].sum = values[l];
}
template <int M, class Threads> __device__ void join(const Threads& threads, Sum (&states)[M]) {
  W values[M];
  for (int l = 0; l < M; ++l) values[l] = states[l].sum;
  threads.reduce(values, Plus());
  for (int l = 0; l < M; ++l) states[l].sum = values[l];
}
template <int M, class Threads> __device__ void join(const Threads&, Label (&)[M]) {}

template <int N> struct OfScores : Map<N, Exponentials> {
  typedef Pack<T, N> Items;
  static const bool reduces = true;
  const T* x;
  __device__ Exponentials begin(long long) const { return Exponentials::empty(); }
  __device__ Items load(long long i) const { return this->get(x, i); }
  __device__ void add(Exponentials& state, const Items& items, int from, int to) const {
    W peak = state.peak;
    for (int l = from; l < to; ++l) {
      const W value = Number<T>::up(items.element[l]);
      if (value > peak) peak = value;
    }
    if (peak > state.peak) {
      state.sum = state.sum * exponential(state.peak - peak);
      state.peak = peak;
    }
    for (int l = from; l < to; ++l) {
      const W value = Number<T>::up(items.element[l]);
      // exp(-inf - -inf) would be NaN where all elements so far are -inf.
      if (value != lowest()) state.sum += exponential(value - state.peak);
    }
  }
};
"""

_SOFTMAX = (
    _STATES
    + """
template <int N> struct Softmax : OfScores<N> {
  T* y;
  __device__ void finish(Exponentials& state, long long, long long, long long, bool) const {
    state.sum = 1 / state.sum;
  }
  __device__ void store(long long i, long long, int, const Pack<T, N>& items,
                        const Exponentials* states, int apart) const {
    Pack<T, N> result;
    for (int l = 0; l < N; ++l) {
      const Exponentials& state = states[l * apart];
      const W value = Number<T>::up(items.element[l]) - state.peak;
      result.element[l] = Number<T>::down(exponential(value) * state.sum);
    }
    this->put(y, i, result);
  }
};
"""
)
_LOG_SOFTMAX = (
    _STATES
    + """
template <int N> struct LogSoftmax : OfScores<N> {
  T* y;
  __device__ void finish(Exponentials& state, long long, long long, long long, bool) const {
    state.sum = logarithm(state.sum);
  }
  __device__ void store(long long i, long long, int, const Pack<T, N>& items,
                        const Exponentials* states, int apart) const {
    Pack<T, N> result;
    for (int l = 0; l < N; ++l) {
      const Exponentials& state = states[l * apart];
      const W value = Number<T>::up(items.element[l]) - state.peak;
      result.element[l] = Number<T>::down(value - state.sum);
    }
    this->put(y, i, result);
  }
};
"""
)
_CROSS_ENTROPY = (
    _STATES
    + """
template <int N> struct CrossEntropy : OfScores<N> {
  static const bool stores = false;
  const long long* target;
  T *loss, *peak;
  W* total;
  long long classes;
  __device__ void finish(Exponentials& state, long long row, long long base, long long apart,
                         bool chosen) const {
    if (!chosen) return;
    const long long label = target[row];
    W found = 0;
    // A label out of range is reported elsewhere; here it must not be followed.
    if (label >= 0 && label < classes)
      found = logarithm(state.sum) - (Number<T>::up(this->x[base + label * apart]) - state.peak);
    loss[row] = Number<T>::down(found);
    peak[row] = Number<T>::down(state.peak);
    total[row] = state.sum;
  }
  __device__ void store(long long, long long, int, const Pack<T, N>&, const Exponentials*,
                        int) const {}
};
"""
)
_GRADIENT = """
template <int N> struct {name} : Map<N, Sum> {{
  struct Items {{ Pack<T, N> y, dy; }};
  static const bool reduces = true;
  const T *y, *dy;
  T* dx;
  __device__ Sum begin(long long) const {{ return Sum::empty(); }}
  __device__ Items load(long long i) const {{ return Items{{this->get(y, i), this->get(dy, i)}}; }}
  __device__ void add(Sum& state, const Items& items, int from, int to) const {{
    for (int l = from; l < to; ++l) {{
      const W y = Number<T>::up(items.y.element[l]), dy = Number<T>::up(items.dy.element[l]);
      state.sum += {term};
    }}
  }}
  __device__ void finish(Sum&, long long, long long, long long, bool) const {{}}
  __device__ void store(long long i, long long, int, const Items& items, const Sum* states,
                        int apart) const {{
    Pack<T, N> result;
    for (int l = 0; l < N; ++l) {{
      const W y = Number<T>::up(items.y.element[l]), dy = Number<T>::up(items.dy.element[l]);
      const W sum = states[l * apart].sum;
      result.element[l] = Number<T>::down({result});
    }}
    this->put(dx, i, result);
  }}
}};
"""
_CROSS_ENTROPY_GRADIENT = (
    _STATES
    + """
template <int N> struct CrossEntropyGradient : Map<N, Label> {
  typedef Pack<T, N> Items;
  static const bool reduces = false;
  const T *x, *dy;
  const long long* target;
  const T* peak;
  const W* total;
  T* dx;
  __device__ Label begin(long long row) const {
    const long long label = target[row];
    const W passed = label < 0 ? (W)0 : Number<T>::up(dy[row]);
    return Label{Number<T>::up(peak[row]), passed, passed / total[row], label};
  }
  __device__ Items load(long long i) const { return this->get(x, i); }
  __device__ void add(Label&, const Items&, int, int) const {}
  __device__ void finish(Label&, long long, long long, long long, bool) const {}
  __device__ void store(long long i, long long position, int step, const Items& items,
                        const Label* states, int apart) const {
    Pack<T, N> result;
    for (int l = 0; l < N; ++l) {
      const Label& state = states[l * apart];
      W value = exponential(Number<T>::up(items.element[l]) - state.peak) * state.scale;
      if (position + l * step == state.target) value = value - state.dy;
      result.element[l] = Number<T>::down(value);
    }
    this->put(dx, i, result);
  }
};
"""
)

_SCORES = (("x", "const T* "), ("y", "T* "))
SOFTMAX = RowMap("softmax", "Softmax", _SOFTMAX, _SCORES, ("x", "y"))
LOG_SOFTMAX = RowMap("log_softmax", "LogSoftmax", _LOG_SOFTMAX, _SCORES, ("x", "y"))
CROSS_ENTROPY = RowMap(
    "cross_entropy",
    "CrossEntropy",
    _CROSS_ENTROPY,
    (
        ("x", "const T* "), ("target", "const long long* "), ("loss", "T* "), ("peak", "T* "),
        ("total", "W* "), ("classes", "long long "),
    ),
    ("x",),
)  # fmt: skip
_GRADIENTS = (("y", "const T* "), ("dy", "const T* "), ("dx", "T* "))
SOFTMAX_GRADIENT = RowMap(
    "softmax_gradient",
    "SoftmaxGradient",
    _STATES + _GRADIENT.format(name="SoftmaxGradient", term="dy * y", result="y * (dy - sum)"),
    _GRADIENTS,
    ("y", "dy", "dx"),
)
LOG_SOFTMAX_GRADIENT = RowMap(
    "log_softmax_gradient",
    "LogSoftmaxGradient",
    _STATES
    + _GRADIENT.format(name="LogSoftmaxGradient", term="dy", result="dy - exponential(y) * sum"),
    _GRADIENTS,
    ("y", "dy", "dx"),
)
CROSS_ENTROPY_GRADIENT = RowMap(
    "cross_entropy_gradient",
    "CrossEntropyGradient",
    _CROSS_ENTROPY_GRADIENT,
    (
        ("x", "const T* "), ("dy", "const T* "), ("target", "const long long* "),
        ("peak", "const T* "), ("total", "const W* "), ("dx", "T* "),
    ),
    ("x", "dx"),
)  # fmt: skip
_ALL = (
    SOFTMAX, LOG_SOFTMAX, CROSS_ENTROPY, SOFTMAX_GRADIENT, LOG_SOFTMAX_GRADIENT,
    CROSS_ENTROPY_GRADIENT,
)  # fmt: skip


def sources() -> Iterator[tuple[str, str]]:
    """Name and source of a kernel of each kind; others have other numbers of lanes and packs."""
    for row_map in _ALL:
        for dtype in FLOATS:
            for lanes, kept in ((1, 0), (lanes_of(1 << 10, dtype), 2), (1, None)):
                yield row_map.source(dtype, lanes, kept)
