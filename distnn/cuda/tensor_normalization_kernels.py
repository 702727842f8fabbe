"""Kernels of layer, instance and group normalization, and of their gradients: maps of rows."""

from __future__ import annotations

from collections.abc import Iterator

from .kernels import FLOATS
from .numbers import lanes_of
from .rows import RowMap

# Where beta and gamma lie: element i of x has the parameter (i / inner) % count.
_PLACE = """
struct Place {
  long long inner, count, rest, index;
  __device__ Place(long long i, long long inner, long long count) : inner(inner), count(count) {
    const long long whole = i / inner;
    rest = i - whole * inner;
    index = whole % count;
  }
  __device__ void next() {
    if (++rest < inner) return;
    rest = 0;
    if (++index == count) index = 0;
  }
};
template <int N>
__device__ Pack<T, N> parameters(const T* values, int there, W missing, long long i,
                                 long long inner, long long count) {
  Pack<T, N> found;
  if (there) {
    Place place(i, inner, count);
    for (int l = 0; l < N; ++l, place.next()) found.element[l] = values[place.index];
  } else {
    for (int l = 0; l < N; ++l) found.element[l] = Number<T>::down(missing);
  }
  return found;
}
"""
# A thread adds up differences to the first of its elements, which lose nothing to a large mean. The
# threads of a row then take what they found to differences to a number near the row's mean.
_FORWARD = (
    _PLACE
    + """
struct Moments {
  W n, first, sum, squares;  // joined: first is the mean
  static __device__ Moments empty() { return Moments{0, 0, 0, 0}; }
};
template <int M, class Threads>
__device__ void join(const Threads& threads, Moments (&states)[M]) {
  W values[M], pivots[M], counts[M];
  for (int l = 0; l < M; ++l) {
    Moments& own = states[l];
    const W mean = own.n > 0 ? own.sum / own.n : 0;
    own.squares = own.n > 0 ? own.squares - own.sum * mean : 0;
    own.sum = mean;
    counts[l] = own.n;
    pivots[l] = own.n * (own.first + mean);
  }
  threads.reduce(counts, Plus());
  threads.reduce(pivots, Plus());
  for (int l = 0; l < M; ++l) {
    Moments& own = states[l];
    pivots[l] /= counts[l];
    own.sum += own.first - pivots[l];  // its mean, about the pivot
    values[l] = own.n > 0 ? own.n * own.sum : 0;
  }
  threads.reduce(values, Plus());
  for (int l = 0; l < M; ++l) {
    Moments& own = states[l];
    const W offset = values[l] / counts[l], apart = own.sum - offset;
    values[l] = own.n > 0 ? own.squares + own.n * (apart * apart) : 0;
    own.first = pivots[l] + offset;
  }
  threads.reduce(values, Plus());
  for (int l = 0; l < M; ++l) {
    states[l].n = counts[l];
    states[l].squares = values[l] < 0 ? (W)0 : values[l];
  }
}
template <int N> struct Normalize : Map<N, Moments> {
  typedef Pack<T, N> Items;
  static const bool reduces = true;
  const T *x, *beta, *gamma;
  int shifted, scaled;
  long long beta_inner, beta_count, gamma_inner, gamma_count;
  W eps;
  T *y, *mean, *variance;
  W *centre, *inverse;
  __device__ Moments begin(long long) const { return Moments::empty(); }
  __device__ Items load(long long i) const { return this->get(x, i); }
  __device__ void add(Moments& state, const Items& items, int from, int to) const {
    for (int l = from; l < to; ++l) {
      const W value = Number<T>::up(items.element[l]);
      if (state.n == 0) state.first = value;
      const W difference = value - state.first;
      state.n += 1;
      state.sum += difference;
      state.squares += difference * difference;
    }
  }
  __device__ void finish(Moments& state, long long row, long long, long long, bool chosen) const {
    const W spread = state.squares / state.n;
    state.squares = 1 / square_root(spread + eps);
    if (chosen) {
      mean[row] = Number<T>::down(state.first);
      variance[row] = Number<T>::down(spread);
      centre[row] = state.first;
      inverse[row] = state.squares;
    }
  }
  __device__ void store(long long i, long long, int, const Items& items, const Moments* states,
                        int apart) const {
    const Pack<T, N> scale = parameters<N>(gamma, scaled, 1, i, gamma_inner, gamma_count);
    const Pack<T, N> shift = parameters<N>(beta, shifted, 0, i, beta_inner, beta_count);
    Pack<T, N> result;
    for (int l = 0; l < N; ++l) {
      const Moments& state = states[l * apart];
      const W normal = (Number<T>::up(items.element[l]) - state.first) * state.squares;
      result.element[l] = Number<T>::down(normal * Number<T>::up(scale.element[l]) +
                                          Number<T>::up(shift.element[l]));
    }
    this->put(y, i, result);
  }
};
"""
)
_GRADIENT = (
    _PLACE
    + """
struct Sums {
  W centre, inverse, dmean, dvariance, slope, offset;
  static __device__ Sums empty() { return Sums{0, 0, 0, 0, 0, 0}; }
};
template <int M, class Threads> __device__ void join(const Threads& threads, Sums (&states)[M]) {
  W values[M];
  for (int l = 0; l < M; ++l) values[l] = states[l].slope;
  threads.reduce(values, Plus());
  for (int l = 0; l < M; ++l) {
    states[l].slope = values[l];
    values[l] = states[l].offset;
  }
  threads.reduce(values, Plus());
  for (int l = 0; l < M; ++l) states[l].offset = values[l];
}
template <int N> struct Gradient : Map<N, Sums> {
  struct Items { Pack<T, N> dy, x, scale; };
  static const bool reduces = true;
  const T *dy, *x, *gamma, *dmean, *dvariance;
  int scaled, with_dmean, with_dvariance;
  long long inner, count;
  const W *centre, *inverse;
  W number;  // of elements in a mean
  T* dx;
  W* product;
  int need_dx, need_product;
  __device__ Sums begin(long long row) const {
    return Sums{centre[row], inverse[row], with_dmean ? Number<T>::up(dmean[row]) : (W)0,
                with_dvariance ? Number<T>::up(dvariance[row]) : (W)0, 0, 0};
  }
  __device__ Items load(long long i) const {
    return Items{this->get(dy, i), this->get(x, i),
                 parameters<N>(gamma, scaled, 1, i, inner, count)};
  }
  static __device__ W passed(const Items& items, int l) {
    return Number<T>::up(items.dy.element[l]) * Number<T>::up(items.scale.element[l]);
  }
  static __device__ W normal(const Sums& state, const Items& items, int l) {
    return (Number<T>::up(items.x.element[l]) - state.centre) * state.inverse;
  }
  __device__ void add(Sums& state, const Items& items, int from, int to) const {
    for (int l = from; l < to; ++l) {
      const W g = passed(items, l);
      state.offset += g;
      state.slope += g * normal(state, items, l);
    }
  }
  __device__ void finish(Sums& state, long long, long long, long long, bool) const {
    const W inverse = state.inverse;
    state.slope = state.slope / number - state.dvariance * (2 / number) / (inverse * inverse);
    state.offset = state.offset / number - state.dmean / number / inverse;
  }
  __device__ void store(long long i, long long, int, const Items& items, const Sums* states,
                        int apart) const {
    Pack<T, N> result;
    for (int l = 0; l < N; ++l) {
      const Sums& state = states[l * apart];
      const W value = normal(state, items, l);
      if (need_product) product[i + l] = Number<T>::up(items.dy.element[l]) * value;
      result.element[l] = Number<T>::down(
          (passed(items, l) - value * state.slope - state.offset) * state.inverse);
    }
    if (need_dx) this->put(dx, i, result);
  }
};
"""
)

NORMALIZE = RowMap(
    "normalize_rows",
    "Normalize",
    _FORWARD,
    (
        ("x", "const T* "), ("beta", "const T* "), ("gamma", "const T* "), ("shifted", "int "),
        ("scaled", "int "), ("beta_inner", "long long "), ("beta_count", "long long "),
        ("gamma_inner", "long long "), ("gamma_count", "long long "), ("eps", "W "), ("y", "T* "),
        ("mean", "T* "), ("variance", "T* "), ("centre", "W* "), ("inverse", "W* "),
    ),
    ("x", "y"),
)  # fmt: skip
GRADIENT = RowMap(
    "normalize_rows_gradient",
    "Gradient",
    _GRADIENT,
    (
        ("dy", "const T* "), ("x", "const T* "), ("gamma", "const T* "), ("dmean", "const T* "),
        ("dvariance", "const T* "), ("scaled", "int "), ("with_dmean", "int "),
        ("with_dvariance", "int "), ("inner", "long long "), ("count", "long long "),
        ("centre", "const W* "), ("inverse", "const W* "), ("number", "W "), ("dx", "T* "),
        ("product", "W* "), ("need_dx", "int "), ("need_product", "int "),
    ),
    ("dy", "x", "dx"),
)  # fmt: skip


def sources() -> Iterator[tuple[str, str]]:
    """Name and source of a kernel of each kind; others have other numbers of lanes and packs."""
    for row_map in (NORMALIZE, GRADIENT):
        for dtype in FLOATS:
            for lanes, kept in ((1, 0), (lanes_of(1 << 10, dtype), 2), (1, None)):
                yield row_map.source(dtype, lanes, kept)
