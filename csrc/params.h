// The argument structs of the native operations. Python checks the arguments, allocates the outputs
// and passes addresses; nothing here depends on torch or on Python.
#pragma once

#include <cstdint>
#include <vector>

// Marks functions that both twins call.
#if defined(__CUDACC__)
#define SELFMENT_EVERYWHERE __host__ __device__
#else
#define SELFMENT_EVERYWHERE
#endif

namespace selfment {

// The bit graph of an image of n patches has `words` = ceil(n / 64) columns of `rows` = 64 * words
// words. Bit j % 64 of bits[(j / 64) * rows + i] is set iff an edge joins patches i and j, the
// diagonal included. All bits of patches >= n are 0. The matrix is symmetric.
inline constexpr int64_t kWord = 64;
inline int64_t word_count(int64_t n) { return (n + kWord - 1) / kWord; }
inline int64_t bits_size(int64_t n) { return word_count(n) * word_count(n) * kWord; }

// In weighted mode, affinity - eps of the set bits on and above the diagonal, as strips of 64 rows.
// A strip has its 64 x 64 tiles from the diagonal one (whole) to the right, rows in order, set bits
// in order: an edge takes 4 bytes, where a dense matrix would take 8 for its two entries. A strip
// ends with padding, so that it can be read in whole vectors.
inline constexpr int64_t kStripPadding = 16;
struct EdgeWeights {
  std::vector<std::vector<float>> strips;

  int64_t nbytes() const {
    int64_t bytes = 0;
    for (const auto& strip : strips)
      bytes += static_cast<int64_t>(strip.capacity() * sizeof(float));
    return bytes;
  }
};

// The affinity matrix A of one image. An entry is eps without an edge; with an edge it is 1, or in
// weighted mode eps + weight.
struct Graph {
  const uint64_t* bits;        // (words, rows), see above
  const EdgeWeights* weights;  // nullptr in binary mode
  int64_t n;
  double eps;
};

// Rules for ties, so that rounding does not decide.
inline constexpr double kPeakTie = 1e-7;  // entries within this share of a vector's peak are peaks
inline constexpr double kIpoTie = 1e-12;  // an IPO score up to this is background

// How an operation runs: on how many threads, and a function that says whether to stop early.
// `interrupted` is called ten times a second, only on the thread that called the operation.
struct Context {
  int threads;
  bool (*interrupted)();
};

// An operation throws this if it was interrupted.
struct Interrupted {};

enum class Dtype : int { kFloat16, kBFloat16, kFloat32, kFloat64 };

// The bits of half-precision numbers; both kinds widen to float exactly.
struct Float16 {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

// Calls body with a null pointer of the dtype's type, and returns its result.
template <class Body>
auto with_dtype(Dtype dtype, const Body& body) {
  switch (dtype) {
    case Dtype::kFloat16:
      return body(static_cast<const Float16*>(nullptr));
    case Dtype::kBFloat16:
      return body(static_cast<const BFloat16*>(nullptr));
    case Dtype::kFloat32:
      return body(static_cast<const float*>(nullptr));
    default:
      return body(static_cast<const double*>(nullptr));
  }
}

struct AffinityParams {
  const void* features;  // (batch, n, d)
  Dtype dtype;
  int64_t batch, n, d;
  const double* taus;  // (batch,)
  double eps;
  bool weighted;
  uint64_t* bits;        // out: (batch, words, rows)
  double* degrees;       // out: (batch, n), the row sums of A
  EdgeWeights* weights;  // out: (batch,) in weighted mode, else nullptr
  int64_t* undecided;    // out: (batch,), pairs i <= j that were computed in double; or nullptr
};

// Turns the graph of features into the graph of the same features with some rows zeroed.
struct PaintParams {
  const Graph* graphs;  // (batch,), all of the same n
  int64_t batch;
  const double* taus;    // (batch,), the graphs' thresholds; > 0 in weighted mode
  const bool* mask;      // (batch, n), the rows to zero
  uint64_t* bits;        // out: (batch, words, rows)
  double* degrees;       // out: (batch, n)
  EdgeWeights* weights;  // out: (batch,) in weighted mode, else nullptr
};

struct MatvecParams {
  const Graph* graphs;  // (batch,), all of the same n
  int64_t batch, columns;
  const double* x;  // (batch, columns, n)
  double* y;        // out: (batch, columns, n), A x
};

// Chooses between x and -x as an eigenvector: kPeak makes its entry of largest magnitude positive,
// kLapack is what LAPACK's xSYGVX returns for (D - A, D).
enum class Sign : int { kPeak, kLapack };

// The most Lanczos vectors that LAPACK's sign is derived from.
inline constexpr int64_t kSignVectors = 256;

struct FiedlerParams {
  const Graph* graphs;    // (batch,), all of the same n
  const double* degrees;  // (batch, n), positive
  int64_t batch, k;       // 1 <= k < n
  Sign sign;
  double* eigenvalues;  // out: (batch, k), ascending
  double* vectors;      // out: (batch, k, n), x^T D x = 1
  double* gaps;       // out: (batch, k), distance to the nearest other nontrivial eigenvalue found
  double* residuals;  // out: (batch, k), |M y - theta y| of the unit vectors y = D^1/2 x
  int64_t* iterations;  // out: (batch,), products with the graph
};

// A grid of h x w patches, in row-major order.
struct Grid {
  int64_t h, w;
};

// A vector belongs to one image, or to several frames that were cut together: it has their patches
// one frame after another. Components end where their frame ends.
struct ComponentsParams {
  const double* fiedler;  // (batch, n)
  int64_t batch, n;
  const Grid* grids;  // (frames,), h * w summing to n; in host memory, for the CUDA twin too
  int64_t frames;
  bool corners;    // MaskCut's corner rule, on the corners of all frames
  bool* mask;      // out: (batch, n), a 4-connected component of the seed's side in each frame
  int64_t* seed;   // out: (batch,)
  int64_t* peaks;  // out: (batch, frames), the patch whose component is kept: in the seed's frame
                   // the seed, in others the side's peak; -1 if the side is not in the frame
};

// Rows of features that are read block by block, one pass after another.
struct RowBlocks {
  // Returns the address of the rows from index * rows on, which stay valid until the next call.
  // Called only on the thread that called the operation. nullptr ends the operation: the caller was
  // interrupted.
  const void* (*read)(void* source, int64_t index);
  void* source;
  int64_t rows;  // of each block but the last
};

struct IpoParams {
  const void* features;     // (batch, n, d)
  const RowBlocks* blocks;  // the features of a batch of one, or nullptr if `features` has them
  Dtype dtype;
  int64_t batch, n, d;
  int64_t iters, min_count;
  bool* labels;    // in and out: (batch, n)
  int64_t* steps;  // out: (batch,), steps taken
  // out: (batch,), the distance of the final labels' class means; 0 if a class is empty
  double* separation;
};

// Joins a block of n rows with m landmarks, whose edges are not kept. With A the affinities of the
// rows (n) to the landmarks (m), and E its edges, as 0 and 1:
struct LandmarksParams {
  const void* features;   // (n, d); for the CUDA twin aligned to 16 bytes, like the landmarks
  const void* landmarks;  // (m, d), finite
  Dtype dtype;
  int64_t n, m, d;
  double tau, eps;
  const double* x;          // (columns, m), or nullptr
  int64_t columns, stride;  // stride: doubles from one column of `means` to the next
  double* means;            // (columns, n): out, A x / A 1; in, if x is nullptr
  double* sums;             // in and out: (columns, m), += E^T means
  int64_t* edges;           // in and out: (m,), += E^T 1
  double* totals;           // in and out: (columns,), += 1^T means
};

// Finishes a label: computes its confidence, by the rule of confidence.h, and the maps to return.
struct FinishParams {
  const double* eigenvalues;  // (batch,)
  const double* gaps;         // (batch,)
  const double* separation;   // (batch,), the distance of the class means
  const double* fiedler;      // (batch, n)
  const bool* labels;         // (batch, n), after IPO
  int64_t batch, n;
  const Grid* grids;  // (frames,), as in ComponentsParams
  int64_t frames;
  double min_confidence;
  double* confidence;  // out: (batch,)
  bool* rejected;      // out: (batch,), true if the confidence is below min_confidence
  bool* mask;          // out: (batch, n), the labels; all false if the image is rejected
  float* vectors;      // out: (batch, n), the Fiedler vectors, rounded
};

// Otsu's threshold of the similarities of all pairs i < j, by the rule of threshold.h.
struct ThresholdParams {
  const double* similarities;  // (batch, m, m)
  int64_t batch, m;
  double* taus;  // out: (batch,)
};

// The operations. affinity, ipo and landmarks return the first of the rows (batch * n) that has a
// value that is not finite, or whose norm is not finite; the outputs are void then. Without such a
// row they return -1.
namespace cpu {
int64_t affinity(const AffinityParams&, const Context&);
void paint(const PaintParams&, const Context&);
void matvec(const MatvecParams&, const Context&);
void fiedler(const FiedlerParams&, const Context&);
void components(const ComponentsParams&, const Context&);
int64_t ipo(const IpoParams&, const Context&);
int64_t landmarks(const LandmarksParams&, const Context&);
void finish(const FinishParams&, const Context&);
void threshold(const ThresholdParams&, const Context&);
const char* isa();  // the instruction set in use, as SELFMENT_ISA names it
}  // namespace cpu

// The CUDA twins. All addresses are those of device memory; operations only enqueue work on a
// stream. Rows that are not finite cannot be reported without waiting for the device: their image
// is marked by NaN degrees and vectors, and by empty labels with a NaN separation; a row of a block
// by NaN means. Only ipo waits, and only if it reads blocks: after each step.
namespace cuda {

// In weighted mode the weights of an image are the 64 x 64 tiles on and above the diagonal, row by
// row of tiles: affinity - eps if the bit is set, else 0.
inline int64_t weights_size(int64_t n) {
  return word_count(n) * (word_count(n) + 1) / 2 * kWord * kWord;
}

struct Graphs {
  const uint64_t* bits;  // (batch, words, rows)
  const float* weights;  // (batch, weights_size(n)); nullptr in binary mode
  int64_t batch, n;
  double eps;
};

struct Context {
  void* scratch;  // as many bytes as the operation's `_scratch` returns, aligned to 256
  void* stream;   // a cudaStream_t
};

struct AffinityParams {
  const void* features;  // (batch, n, d), aligned to 16 bytes
  Dtype dtype;
  int64_t batch, n, d;
  const double* taus;  // (batch,)
  double eps;
  uint64_t* bits;   // out: (batch, words, rows)
  float* weights;   // out: (batch, weights_size(n)) in weighted mode, else nullptr
  double* degrees;  // out: (batch, n), the row sums of A; NaN if the row is not finite
  double* norms;    // out: (batch, n), the divisors of the rows; may be nullptr
};

struct PaintParams {
  Graphs graphs;
  const double* taus;  // (batch,); > 0 in weighted mode
  const bool* mask;    // (batch, n)
  uint64_t* bits;      // out: (batch, words, rows)
  float* weights;      // out: (batch, weights_size(n)) in weighted mode, else nullptr
  double* degrees;     // in: (batch, n), the graphs'; out: those of the painted graphs
};

struct MatvecParams {
  Graphs graphs;
  int64_t columns;
  const double* x;  // (batch, columns, n)
  double* y;        // out: (batch, columns, n), A x
};

struct FiedlerParams {
  Graphs graphs;
  const double* degrees;  // (batch, n)
  int64_t k;              // 1 <= k < n
  Sign sign;
  // out, as in selfment::FiedlerParams
  double *eigenvalues, *vectors, *gaps, *residuals;
  int64_t* iterations;
};

// A label: affinity, fiedler for k = 1, components, ipo from their mask, and finish. Arrays that
// one passes to the next are in the scratch memory. A single patch has the eigenvalue 0.
struct LabelParams {
  const void* features;  // (batch, n, d), aligned to 16 bytes
  Dtype dtype;
  int64_t batch, n, d;
  const double* taus;  // (batch,)
  double eps;
  bool weighted;
  const Grid* grids;  // (frames,), as in ComponentsParams
  int64_t frames;
  bool corners;
  int64_t iters, min_count;
  double min_confidence;
  // out, as in the structs of the operations
  bool *mask, *ncut_mask;                    // (batch, n), after and before IPO
  float* fiedler;                            // (batch, n)
  double *eigenvalues, *gaps, *residuals;    // (batch,)
  int64_t *seed, *products, *steps, *peaks;  // (batch,), peaks (batch, frames)
  double *separation, *confidence;           // (batch,)
  bool* rejected;                            // (batch,)
};

int64_t affinity_scratch(Dtype dtype, int64_t batch, int64_t n, int64_t d);
void affinity(const AffinityParams&, const Context&);
void paint(const PaintParams&, const Context&);
void matvec(const MatvecParams&, const Context&);
int64_t fiedler_scratch(int64_t batch, int64_t n, int64_t k, bool weighted, Sign sign);
void fiedler(const FiedlerParams&, const Context&);
int64_t components_scratch(int64_t batch, int64_t n, int64_t frames);
void components(const ComponentsParams&, const Context&);
// `norms`: (batch, n), as affinity computes them; nullptr if they are not known.
int64_t ipo_scratch(Dtype dtype, int64_t batch, int64_t n, int64_t d);
void ipo(const IpoParams&, const double* norms, const Context&);
int64_t landmarks_scratch(Dtype dtype, int64_t n, int64_t m, int64_t d);
void landmarks(const LandmarksParams&, const Context&);
int64_t finish_scratch(int64_t frames);
void finish(const FinishParams&, const Context&);
void threshold(const ThresholdParams&, const Context&);
int64_t label_scratch(const LabelParams&);  // depends on its sizes and on `weighted`
void label(const LabelParams&, const Context&);
}  // namespace cuda

}  // namespace selfment
