// The instructions of csrc/cuda/operand_product.cuh on a host, as the PTX manual defines them: the
// lanes of a warp write their values into a table, meet, and read the values that they should get.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace selfment::cuda {

namespace emulated {

struct Lane {
  const uint16_t* row;
  uint32_t a[4], b[2];
};
inline Lane* warp_table() {
  static Lane table[32][32];  // a block's warps; blocks run one after the other
  return table[threadIdx.x / 32];
}
inline uint16_t half_of(uint32_t pair, int index) {
  return static_cast<uint16_t>(index == 0 ? pair : pair >> 16);
}
template <bool kBFloat16>
float operand(uint32_t pair, int index) {
  const uint16_t bits = half_of(pair, index);
  return kBFloat16 ? to_float(BFloat16{bits}) : to_float(Float16{bits});
}

// Sums as tensor cores are known to do it (Fasi, Higham, Mikaitis, Pranesh, 2021): every term loses
// the bits below 2^-23 of the largest power of two among them, and the sum loses the bits that a
// float has no place for, both without rounding. Newer ones keep a bit or two more.
inline float truncated_sum(float start, const float* products, int count) {
  double largest = std::fabs(start);
  for (int k = 0; k < count; ++k) largest = std::fmax(largest, std::fabs(products[k]));
  float plain = start;
  for (int k = 0; k < count; ++k) plain += products[k];
  if (largest == 0 || !std::isfinite(plain)) return plain;
  const int lowest = std::ilogb(largest) - 23;
  const auto cut = [](double x, int bit) {
    return std::ldexp(std::trunc(std::ldexp(x, -bit)), bit);
  };
  double sum = cut(start, lowest);
  for (int k = 0; k < count; ++k) sum += cut(products[k], lowest);
  if (sum == 0) return 0;
  return static_cast<float>(cut(sum, std::max(std::ilogb(sum) - 23, -149)));
}

}  // namespace emulated

SELFMENT_TOLD inline void load_fragments(uint32_t (&r)[4], const uint16_t* source) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  emulated::Lane* table = emulated::warp_table();
  table[lane].row = source;
  __all_sync(kAllLanes, 1);
  race::plain_read(source, 16, SELFMENT_CALLER);
  for (int matrix = 0; matrix < 4; ++matrix)
    std::memcpy(&r[matrix], table[matrix * 8 + lane / 4].row + lane % 4 * 2, sizeof r[matrix]);
  __all_sync(kAllLanes, 1);
}

template <bool kBFloat16>
SELFMENT_TOLD void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  emulated::Lane* table = emulated::warp_table();
  std::memcpy(table[lane].a, a, sizeof a);
  table[lane].b[0] = b0;
  table[lane].b[1] = b1;
  __all_sync(kAllLanes, 1);
  for (int e = 0; e < 4; ++e) {
    const int row = lane / 4 + e / 2 * 8, column = lane % 4 * 2 + e % 2;
    float products[16];
    for (int k = 0; k < 16; ++k) {
      // Element k of A's row is in matrix (row / 8, k / 8), element k of B's row in matrix k / 8.
      const uint32_t left = table[row % 8 * 4 + k % 8 / 2].a[row / 8 + k / 8 * 2];
      const uint32_t right = table[column * 4 + k % 8 / 2].b[k / 8];
      products[k] =
          emulated::operand<kBFloat16>(left, k % 2) * emulated::operand<kBFloat16>(right, k % 2);
    }
    const int group = emulation::multiply_group();
    if (group == 0)
      for (const float product : products) c[e] += product;
    else
      for (int k = 0; k < 16; k += group) c[e] = emulated::truncated_sum(c[e], products + k, group);
  }
  __all_sync(kAllLanes, 1);
}

SELFMENT_TOLD inline void copy_piece(uint16_t* to, const uint16_t* from, bool exists) {
  emulation::copy_later(to, from, exists, SELFMENT_CALLER);
}
inline void end_copies() { emulation::end_copies(); }
template <int kPending>
void wait_for_copies() {
  emulation::land_copies(kPending);
}

}  // namespace selfment::cuda
