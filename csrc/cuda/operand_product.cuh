// The product of two slabs of half-precision rows in shared memory, by the tensor cores.
#pragma once

#include "rows.cuh"
#if defined(SELFMENT_EMULATE)
#include "tensor_cores.h"
#endif

namespace selfment::cuda {

inline constexpr int kSlab = 32;        // elements of a row in a slab
inline constexpr int kPiece = 8;        // elements of a copy, 16 bytes
inline constexpr int kBlockTile = 128;  // rows of a slab

// Returns where the 16-byte piece of a row is in a slab: pieces are spread so that eight rows,
// which are read at a time, fall into different banks.
__device__ inline int piece_offset(int row, int piece) {
  return row * kSlab + (piece ^ (row / 2 % 4)) * kPiece;
}

// A warp has 64 x 64 sums. Element e of a lane's fragment (m, n) belongs to row
// 16 m + lane / 4 + 8 (e / 2) and column 8 n + 2 (lane % 4) + e % 2.
struct WarpTile {
  static constexpr int kRows = 64, kColumns = 64;
  float sums[4][8][4];

  __device__ static int row(int lane, int m, int e) { return 16 * m + lane / 4 + 8 * (e / 2); }
  __device__ static int column(int lane, int n, int e) { return 8 * n + 2 * (lane % 4) + e % 2; }
};

// --- The device's own instructions ---
//
// "memory" keeps reads and writes on their side of them.

#if !defined(SELFMENT_EMULATE)

// Loads four 8 x 8 matrices: lane l passes the address of row l % 8 of matrix l / 8, and gets
// elements 2 (l % 4) and 2 (l % 4) + 1 of row l / 4 of each.
__device__ inline void load_fragments(uint32_t (&r)[4], const uint16_t* source) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(source))
               : "memory");
}

// c += A B^T, for 16 rows of A and 8 of B, of 16 elements. A's matrices are its rows 0 to 7 and 8
// to 15, first of its elements 0 to 7, then of its elements 8 to 15; B's are its elements 0 to 7
// and 8 to 15.
template <bool kBFloat16>
__device__ void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if (kBFloat16)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Copies 16 bytes to shared memory in the background; if the piece does not exist, it writes zeros
// and does not read `from`. The next slab of a row is in the same 128 bytes, or the one before.
__device__ inline void copy_piece(uint16_t* to, const uint16_t* from, bool exists) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(shared_address(to)),
               "l"(from), "r"(exists ? 16 : 0)
               : "memory");
}
// Ends a group of copies.
__device__ inline void end_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most kPending groups are under way.
template <int kPending>
__device__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

#endif

// tile += A B^T of the slabs' rows from `row` and `column` on, which are multiples of 8.
//
// The tensor cores sum a slab alone, from 0, for 8 columns at a time; their sums are added to the
// tile's in float32. So 16 registers hold what is under way, and no sum of theirs is long.
template <bool kBFloat16>
__device__ void add_product(WarpTile& tile, const uint16_t* a, int row, const uint16_t* b,
                            int column, int lane) {
  static_assert(kSlab == 32);  // fragments of 8 of B's rows are all that is loaded at a time
  // The places of the first rows; those of the others are multiples of 8 rows away.
  a += row * kSlab;
  b += column * kSlab + piece_offset(lane % 8, lane / 8);
  uint32_t left[2][4][4];
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    const uint16_t* first = a + piece_offset(lane % 16, 2 * k + lane / 16);
#pragma unroll
    for (int m = 0; m < 4; ++m) load_fragments(left[k][m], first + 16 * m * kSlab);
  }
#pragma unroll
  for (int n = 0; n < 8; ++n) {
    uint32_t right[4];
    load_fragments(right, b + 8 * n * kSlab);
    float sums[4][4] = {};
#pragma unroll
    for (int k = 0; k < 2; ++k)
#pragma unroll
      for (int m = 0; m < 4; ++m)
        multiply_add<kBFloat16>(sums[m], left[k][m], right[2 * k], right[2 * k + 1]);
#pragma unroll
    for (int m = 0; m < 4; ++m)
#pragma unroll
      for (int e = 0; e < 4; ++e) tile.sums[m][n][e] += sums[m][e];
  }
}

}  // namespace selfment::cuda
