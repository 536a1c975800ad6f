// The argument structs of the native operations. Python checks the arguments, allocates the outputs
// and passes addresses; nothing here knows of torch or of Python.
#pragma once

#include <cstdint>
#include <vector>

// Functions that both twins call.
#if defined(__CUDACC__)
#define SELFMENT_EVERYWHERE __host__ __device__
#else
#define SELFMENT_EVERYWHERE
#endif

namespace selfment {

// The bit graph of an image of n patches: `words` = ceil(n / 64) columns of `rows` = 64 * words
// words. Bit j % 64 of bits[(j / 64) * rows + i] is set iff patches i and j are joined by an edge,
// the diagonal included. All bits of patches >= n are 0. The matrix is symmetric.
inline constexpr int64_t kWord = 64;
inline int64_t word_count(int64_t n) { return (n + kWord - 1) / kWord; }
inline int64_t bits_size(int64_t n) { return word_count(n) * word_count(n) * kWord; }

// Weighted mode: affinity - eps of the set bits on and above the diagonal, as strips of 64 rows. A
// strip holds its 64 x 64 tiles from the diagonal one (whole) to the right, rows in order, set bits
// in order: 4 bytes for an edge, against 8 for two entries of a dense matrix. A strip ends with
// padding, so that it can be read in whole vectors.
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

// The affinity matrix A of one image: eps where no edge is, else 1, or eps + weight where
// `weights`.
struct Graph {
  const uint64_t* bits;        // (words, rows), see above
  const EdgeWeights* weights;  // nullptr in binary mode
  int64_t n;
  double eps;
};

// Rules for ties, so that rounding does not decide: entries of a vector that differ from its peak
// by less than this share of it are peaks, too; an IPO score up to this is background.
inline constexpr double kPeakTie = 1e-7;
inline constexpr double kIpoTie = 1e-12;

// How an operation runs: on how many threads, and whom to ask whether to give up. `interrupted` is
// called on the thread that called the operation only, ten times a second.
struct Context {
  int threads;
  bool (*interrupted)();
};

// Thrown out of an operation whose context says that it was interrupted.
struct Interrupted {};

enum class Dtype : int { kFloat16, kBFloat16, kFloat32, kFloat64 };

// The bits of half-precision numbers; both kinds widen to float exactly.
struct Float16 {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

// Calls body with a null pointer of the dtype's type, and returns what it returns.
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
  int64_t* undecided;    // out: (batch,), pairs i <= j that were taken in double; may be nullptr
};

// The graph of the features with some rows zeroed, from the graph of the features.
struct PaintParams {
  const Graph* graphs;  // (batch,), all of the same n
  int64_t batch;
  const double* taus;    // (batch,), of the graphs; > 0 in weighted mode
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

// Which of x and -x an eigenvector is: the one whose entry of largest magnitude is positive, or the
// one that LAPACK's xSYGVX returns for (D - A, D).
enum class Sign : int { kPeak, kLapack };

// Lanczos vectors that the sign of LAPACK is read from, at most.
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

// A vector is of one image, or of several frames that were cut together: their patches one frame
// after another. Components end where their frame ends.
struct ComponentsParams {
  const double* fiedler;  // (batch, n)
  int64_t batch, n;
  const Grid* grids;  // (frames,), h * w summing to n; in host memory, for the CUDA twin too
  int64_t frames;
  bool corners;    // MaskCut's corner rule, on the corners of all frames
  bool* mask;      // out: (batch, n), a 4-connected component of the seed's side in each frame
  int64_t* seed;   // out: (batch,)
  int64_t* peaks;  // out: (batch, frames), the patch of the frame that its component is kept for:
                   // the seed in its own, else the side's peak there; -1 where the side is not
};

struct IpoParams {
  const void* features;  // (batch, n, d)
  Dtype dtype;
  int64_t batch, n, d;
  int64_t iters, min_count;
  bool* labels;    // in and out: (batch, n)
  int64_t* steps;  // out: (batch,), steps taken
  // out: (batch,), the distance of the final labels' class means; 0 where a class is empty
  double* separation;
};

// The end of a label: its confidence, by the rule of confidence.h, and the maps that are returned.
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
  bool* rejected;      // out: (batch,), whether the confidence is below min_confidence
  bool* mask;          // out: (batch, n), the labels; all false where the image is rejected
  float* vectors;      // out: (batch, n), the Fiedler vectors, rounded
};

// Otsu's threshold of the similarities of all pairs i < j, by the rule of threshold.h.
struct ThresholdParams {
  const double* similarities;  // (batch, m, m)
  int64_t batch, m;
  double* taus;  // out: (batch,)
};

// The operations. affinity and ipo return the first row, of the batch * n, that holds a value that
// is not finite or whose norm is not, and -1 where there is none; the outputs are void in the first
// case.
namespace cpu {
int64_t affinity(const AffinityParams&, const Context&);
void paint(const PaintParams&, const Context&);
void matvec(const MatvecParams&, const Context&);
void fiedler(const FiedlerParams&, const Context&);
void components(const ComponentsParams&, const Context&);
int64_t ipo(const IpoParams&, const Context&);
void finish(const FinishParams&, const Context&);
void threshold(const ThresholdParams&, const Context&);
const char* isa();  // the instruction set in use, as SELFMENT_ISA names it
}  // namespace cpu

// The CUDA twin. All addresses are of device memory; operations only enqueue work on a stream. Rows
// that are not finite cannot be reported without waiting for the device: NaN degrees and vectors
// and empty labels, with a NaN for the separation, mark their image.
namespace cuda {

// In weighted mode the weights of an image are 64 x 64 tiles on and above the diagonal, row by row
// of tiles: affinity - eps where the bit is set, else 0.
inline int64_t weights_size(int64_t n) {
  return word_count(n) * (word_count(n) + 1) / 2 * kWord * kWord;
}

struct Graphs {
  const uint64_t* bits;  // (batch, words, rows)
  const float* weights;  // (batch, weights_size(n)); nullptr in binary mode
  int64_t batch, n;
  double eps;
};

// Scratch memory, of as many bytes as the operation asks for and aligned to 256; a cudaStream_t.
struct Context {
  void* scratch;
  void* stream;
};

struct AffinityParams {
  const void* features;  // (batch, n, d), aligned to 16 bytes
  Dtype dtype;
  int64_t batch, n, d;
  const double* taus;  // (batch,)
  double eps;
  uint64_t* bits;   // out: (batch, words, rows)
  float* weights;   // out: (batch, weights_size(n)) in weighted mode, else nullptr
  double* degrees;  // out: (batch, n), the row sums of A; NaN where the row is not finite
  double* norms;    // out: (batch, n), what the rows are divided by; may be nullptr
};

struct PaintParams {
  Graphs graphs;
  const double* taus;  // (batch,); > 0 in weighted mode
  const bool* mask;    // (batch, n)
  uint64_t* bits;      // out: (batch, words, rows)
  float* weights;      // out: (batch, weights_size(n)) in weighted mode, else nullptr
  double* degrees;     // in: (batch, n), those of the graphs; out: of the painted ones
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

// A label: affinity, fiedler for k = 1, components, ipo from their mask, and finish. What one makes
// for the next is in the scratch memory. A single patch has the eigenvalue 0.
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
// `norms`: (batch, n), as affinity makes them; nullptr where they are not known.
int64_t ipo_scratch(Dtype dtype, int64_t batch, int64_t n, int64_t d);
void ipo(const IpoParams&, const double* norms, const Context&);
int64_t finish_scratch(int64_t frames);
void finish(const FinishParams&, const Context&);
void threshold(const ThresholdParams&, const Context&);
int64_t label_scratch(const LabelParams&);  // of its sizes, and of whether it is weighted
void label(const LabelParams&, const Context&);
}  // namespace cuda

}  // namespace selfment
