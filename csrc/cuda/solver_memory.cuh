// The memory of the eigensolver: the shared memory of a block, and the device memory of a team of
// blocks. Addresses are computed when they are needed, to save registers.
#pragma once

#include "graph_product.cuh"

namespace selfment::cuda::solver {

inline constexpr int kExchanges = 4;  // buffers in turn: one is not written before all have read it

struct Args {
  FiedlerParams p;
  int64_t words, weights_each;
  int64_t limit;     // the most vectors of the basis
  int64_t kept;      // the most Ritz vectors that a restart keeps
  int64_t columns;   // the most columns of reflections, for LAPACK's sign; 0 for the other sign
  int64_t vectors;   // vectors that fit into the memory of the basis
  int64_t partials;  // doubles of an exchange
  int64_t teams, team_size;
  int64_t resident;  // where in shared memory the blocks keep their bits; 0 if they do not
  unsigned* arrivals;
  // Each team has its own of these arrays, one team's after the other's:
  double *scale, *scaled, *work, *pairs, *basis, *kept_vectors, *exchange, *projected, *ritz_values,
      *ritz_vectors, *jacobi_matrices, *thetas, *gaps, *signs, *factors;
};

// The variables that all threads of a block share.
struct Block {
  Args args;
  GraphView graph;
  int64_t number;       // the team's
  int64_t first, last;  // the block's own words of rows
  bool leads;           // true for the team's first block
};

// The shared memory has the product's arrays, a Block, the last sums, and the block's own bits.
inline constexpr int64_t kBlockBytes = (int64_t{sizeof(Block)} + 15) / 16 * 16;
inline constexpr int64_t kSumsAt = kProductBytes + kBlockBytes;

// --- Shared memory ---

__device__ inline Block& block() {
  return *reinterpret_cast<Block*>(shared_memory() + kProductBytes);
}
__device__ inline const Args& args() { return block().args; }
__device__ inline double* sums() { return reinterpret_cast<double*>(shared_memory() + kSumsAt); }
__device__ inline int* busy() {
  return reinterpret_cast<int*>(sums() + args().partials / args().words);
}
__device__ inline int64_t n() { return args().p.graphs.n; }
__device__ inline int64_t first() { return block().first; }
__device__ inline int64_t last() { return block().last; }
__device__ inline bool leads() { return block().leads; }

// --- Device memory ---

// The team's own `count` numbers of an array, from the `at`-th on.
__device__ inline double* mine(double* all, int64_t count, int64_t at = 0) {
  return global(all) + block().number * count + at;
}
__device__ inline double* scale() { return mine(args().scale, n()); }  // D^-1/2
__device__ inline double* scaled() { return mine(args().scaled, n()); }
__device__ inline double* work() { return mine(args().work, n()); }
// Vector 0 is the trivial one, 1 to k are the pairs, k + 1 is one that was missed.
__device__ inline double* pair(int64_t i) {
  return mine(args().pairs, (args().p.k + 2) * n(), i * n());
}
__device__ inline double& theta(int64_t i) { return *mine(args().thetas, args().p.k + 2, i); }
__device__ inline double& gap(int64_t i) { return *mine(args().gaps, args().p.k + 2, i); }
__device__ inline double* basis(int64_t j) {
  return mine(args().basis, args().vectors * n(), j * n());
}
__device__ inline double* kept_vectors() { return mine(args().kept_vectors, args().kept * n()); }
__device__ inline double* projected() {  // T = V^T M V, (limit, limit)
  return mine(args().projected, args().limit * args().limit);
}
__device__ inline double* ritz_values() { return mine(args().ritz_values, args().limit); }
__device__ inline double* ritz_vectors() {
  return mine(args().ritz_vectors, args().limit * args().limit);
}
__device__ inline double* jacobi_matrices() {  // two of them, (limit, limit)
  return mine(args().jacobi_matrices, 2 * args().limit * args().limit);
}
__device__ inline double* signs() { return mine(args().signs, args().columns); }
__device__ inline double* factors() {
  return mine(args().factors, args().columns * args().columns);
}
__device__ inline double* exchange(int turn) {
  return mine(args().exchange, kExchanges * args().partials, turn * args().partials);
}

// Calls body(i) for the block's own rows; its threads meet afterwards.
template <class Body>
__device__ void own_rows(const Body& body) {
  for (int64_t i = first() * kWord + threadIdx.x; i < min(last() * kWord, n()); i += blockDim.x)
    body(i);
  __syncthreads();
}

}  // namespace selfment::cuda::solver
