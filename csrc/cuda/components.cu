// Makes the initial mask from the Fiedler vector, by TokenCut's rule, and MaskCut's corner rule.
// Each frame has a block. Components are trees of patches, whose root is the least index: each
// patch is a tree of its own at first, then the trees of neighbouring patches are joined.
#include "frames.cuh"

namespace selfment::cuda {

namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / kWarp;

struct Args {
  ComponentsParams p;  // its grids are in the host's memory
  Frames frames;
  int* parents;  // (batch, n)
};

template <class Number, class Join>
__device__ Number reduce(Number v, Number none, const Join& join, unsigned char* shared) {
  return block_reduce<kWarps>(v, none, join, reinterpret_cast<Number*>(shared));
}

// Returns the first i in [0, n) whose value(i) equals the largest value up to kPeakTie, or -1 if
// the values are not finite.
template <class Value>
__device__ int first_peak(int n, const Value& value, unsigned char* shared) {
  const auto larger = [](double x, double y) { return y > x ? y : x; };
  const auto smaller = [](int x, int y) { return min(x, y); };
  double peak = -INFINITY;
  for (int i = static_cast<int>(threadIdx.x); i < n; i += kThreads) peak = larger(peak, value(i));
  peak = reduce(peak, -double{INFINITY}, larger, shared);
  const double enough = peak - kPeakTie * fabs(peak);
  int first = n;
  for (int i = static_cast<int>(threadIdx.x); i < n; i += kThreads)
    if (value(i) >= enough) first = min(first, i);
  first = reduce(first, n, smaller, shared);
  return first < n ? first : -1;
}

// --- Trees ---

// The root of patch i's tree.
__device__ int root(const volatile int* parents, int i) {
  while (parents[i] != i) i = parents[i];
  return i;
}

// Joins the trees of patches i and j.
__device__ void join_trees(int* parents, int i, int j) {
  while (true) {
    i = root(parents, i);
    j = root(parents, j);
    if (i == j) return;
    const int low = min(i, j), high = max(i, j);
    const int was = atomicMin(parents + high, low);
    if (was == high) return;
    i = was;  // another thread was faster: `high` had got the parent `was`, which low has to join
    j = low;
  }
}

// --- The side of the cut that is the foreground ---

struct Foreground {
  const double* x;
  double average;
  bool swapped;
  int seed;  // -1 if x is not finite

  // A patch is in the foreground iff x > average, or iff not if the sides are `swapped`.
  __device__ bool has(int i) const { return (x[i] > average) != swapped; }
  // A patch is the deeper in the foreground, the larger sign() * x.
  __device__ double sign() const { return swapped ? -1 : 1; }
};

// TokenCut's rule: the side of the peak of |x|.
__device__ Foreground peak_side(const double* x, int n, unsigned char* shared) {
  double average = 0;
  for (int i = static_cast<int>(threadIdx.x); i < n; i += kThreads) average += x[i];
  const auto add = [](double u, double v) { return u + v; };
  average = reduce(average, 0.0, add, shared) / n;
  const int seed = first_peak(n, [=](int i) { return fabs(x[i]); }, shared);
  return {x, average, seed >= 0 && !(x[seed] > average), seed};
}

// MaskCut's corner rule: if three quarters of the corners are foreground, changes to the other
// side, whose seed is the patch that is deepest in it.
__device__ void avoid_corners(const Args& a, Foreground& foreground, unsigned char* shared) {
  const int frames = static_cast<int>(a.p.frames), n = static_cast<int>(a.p.n);
  int corners = 0, others = 0;
  for (int i = static_cast<int>(threadIdx.x); i < frames; i += kThreads) {
    const Frame f = a.frames.at(i);
    const int last = f.first + f.h * f.w - 1;
    corners += foreground.has(f.first) + foreground.has(f.first + f.w - 1) +
               foreground.has(last - f.w + 1) + foreground.has(last);
  }
  for (int i = static_cast<int>(threadIdx.x); i < n; i += kThreads)
    others += foreground.has(i) ? 0 : 1;
  const auto add = [](int u, int v) { return u + v; };
  corners = reduce(corners, 0, add, shared);
  others = reduce(others, 0, add, shared);
  if (corners < 3 * frames || others == 0) return;
  foreground.swapped = !foreground.swapped;
  const double *x = foreground.x, sign = foreground.sign();
  foreground.seed = first_peak(n, [=](int i) { return sign * x[i]; }, shared);
}

// Writes the component of the foreground in a frame that has the frame's patch `peak`.
__device__ void keep_component(const Foreground& foreground, const Frame& frame, int peak,
                               int* parents, bool* mask) {
  const int first = frame.first, w = frame.w, size = frame.h * frame.w;
  const int thread = static_cast<int>(threadIdx.x);
  for (int i = thread; i < size; i += kThreads) parents[i] = i;
  __syncthreads();
  for (int i = thread; i < size; i += kThreads) {
    if (!foreground.has(first + i)) continue;
    if (i % w > 0 && foreground.has(first + i - 1)) join_trees(parents, i, i - 1);
    if (i >= w && foreground.has(first + i - w)) join_trees(parents, i, i - w);
  }
  __syncthreads();
  const int kept = root(parents, peak);
  for (int i = thread; i < size; i += kThreads)
    mask[i] = foreground.has(first + i) && root(parents, i) == kept;
}

// Makes the mask of a frame. All blocks of a vector find its side and its seed, in the same way.
__global__ void __launch_bounds__(kThreads, 1) initial_mask(Args a) {
  unsigned char* shared = shared_memory();
  const int frames = static_cast<int>(a.p.frames), n = static_cast<int>(a.p.n);
  const int64_t image = blockIdx.x / frames;
  const int own = static_cast<int>(blockIdx.x % frames), thread = static_cast<int>(threadIdx.x);
  const Frame frame = a.frames.at(own);
  const int first = frame.first, size = frame.h * frame.w;
  bool* mask = a.p.mask + image * n + first;
  int64_t* kept_peak = a.p.peaks + image * frames + own;

  Foreground foreground = peak_side(a.p.fiedler + image * n, n, shared);
  if (foreground.seed < 0) {
    for (int i = thread; i < size; i += kThreads) mask[i] = false;
    if (thread == 0) *kept_peak = -1;
    if (thread == 0 && own == 0) a.p.seed[image] = 0;
    return;
  }
  if (a.p.corners) avoid_corners(a, foreground, shared);

  int peak = foreground.seed - first;
  if (peak < 0 || peak >= size) {
    const double sign = foreground.sign();
    const auto depth = [&](int i) {
      return foreground.has(first + i) ? sign * foreground.x[first + i] : -double{INFINITY};
    };
    peak = first_peak(size, depth, shared);
  }
  keep_component(foreground, frame, peak, a.parents + image * n + first, mask);
  if (thread == 0) *kept_peak = foreground.has(first + peak) ? peak : -1;
  if (thread == 0 && own == 0) a.p.seed[image] = foreground.seed;
}

}  // namespace

int64_t components_scratch(int64_t batch, int64_t n, int64_t frames) {
  return frames_size(frames) + batch * n * static_cast<int64_t>(sizeof(int));
}

void components(const ComponentsParams& p, const Context& context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  auto* parents =
      reinterpret_cast<int*>(static_cast<unsigned char*>(context.scratch) + frames_size(p.frames));
  const Frames frames = store_frames("components", p.grids, p.frames, context.scratch, stream);
  const Args a{p, frames, parents};
  launch("components", initial_mask, p.batch * p.frames, kThreads, kWarps * int64_t{sizeof(double)},
         stream, a);
}

}  // namespace selfment::cuda
