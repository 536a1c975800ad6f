#include "edges.h"

namespace selfment::cpu {

namespace {

// Bounds |float32 product - exact product| of two rounded rows of d elements. A chunk is a sum of
// kChunk products, one rounding each (two without fma), from zero; then the chunks are summed. With
// u = 2^-24 an element passes through at most m = kChunk + chunks + 1 roundings, so the error is at
// most gamma_m = m u / (1 - m u) times sum |a_k b_k| <= |a| |b| (Cauchy-Schwarz), and a rounded row
// has |a| <= 1 + 2u. The last term covers underflow, flushed to zero or not.
double product_error(int64_t d) {
  const double u = std::ldexp(1.0, -24);
  const double m = static_cast<double>(std::min(d, kChunk) + (d + kChunk - 1) / kChunk + 1) * u;
  return m / (1 - m) * (1 + 5 * u) + static_cast<double>(d) * std::ldexp(1.0, -120);
}

// A rounded row f, of norm 1 or less, becomes a row of integers q = f / step, rounded.
//
// Inner products of such rows fit into 32 bits, partial sums included: sum |q_k r_k| <= |q| |r| <
// kIntegerNorm^2 < 2^31, as a step is at least 1 / (kIntegerNorm - sqrt(d)) and rounding adds at
// most sqrt(d) / 2 to a norm. A step also keeps elements within 16 bits.
constexpr double kIntegerNorm = 46000;
constexpr int64_t kMostIntegers = int64_t{1} << 16;  // elements of a row, so that sqrt(d) is small

}  // namespace

EdgeRule::EdgeRule(double tau, bool weighted, int64_t d)
    : tau(tau),
      weighted(weighted),
      d(d),
      integers(simd().integer_product != nullptr && !weighted && d <= kMostIntegers),
      depth((d + kQuantum - 1) / kQuantum * kQuantum),
      row_bytes(integers ? depth * int64_t{sizeof(int16_t)} : d * int64_t{sizeof(float)}) {
  const double error = product_error(d);
  low = std::nextafter(static_cast<float>(tau - error), -1e30f);
  high = std::nextafter(static_cast<float>(tau + error), 1e30f);
}

float least_step(int64_t d) {
  return static_cast<float>(1 / (kIntegerNorm - std::sqrt(static_cast<double>(d))));
}

// Returns a row's share m in the bound of |step step' <q, r> - <f, g>| for rows f and g; the bound
// is the sum of the two rows' shares. With E >= |f - step q|, u = 2^-24 and |f| <= 1 + 2u the
// Cauchy-Schwarz inequality yields
//   |<f, g> - step step' <q, r>| <= |<f - step q, g>| + |<step q, g - step' r>|
//                                <= E (1 + 2u) + (1 + 2u + E) E' <= m + m',
//   m = (1 + 3u) E + E^2 / 2.
// E is the measured error plus at most 2u for the roundings of its measurement, of step * q and of
// the difference. The comparison adds its own roundings to m: those of the product, its scaling,
// tau, the difference and the margins' sum, each at most u times 1 + 2u or |tau|.
double row_margin(double error, double tau) {
  const double u = std::ldexp(1.0, -24), total = error + 3 * u;
  return (1 + 3 * u) * total + total * total / 2 + 6 * u * std::max(1.0, std::abs(tau));
}

TwoDoubles exact_product(const float* a, const float* b, int64_t d, int64_t stride) {
  double s = 0, c = 0;
  for (int64_t k = 0; k < d; ++k) {
    const double p = static_cast<double>(a[k * stride]) * static_cast<double>(b[k * stride]);
    const double t = s + p, v = t - s;
    c += (s - (t - v)) + (p - v);
    s = t;
  }
  return {s, c};
}

void transpose(const uint64_t* in, uint64_t* out) {
  std::memcpy(out, in, kTile * sizeof(uint64_t));
  uint64_t mask = 0x00000000FFFFFFFFull;
  for (int64_t step = 32; step != 0; step >>= 1, mask ^= mask << step) {
    for (int64_t i = 0; i < kTile; i = (i + step + 1) & ~step) {
      const uint64_t swapped = ((out[i] >> step) ^ out[i + step]) & mask;
      out[i] ^= swapped << step;
      out[i + step] ^= swapped;
    }
  }
}

void compare(const EdgeRule& rule, const Strip& rows, const Strip& columns, Tile& tile,
             uint64_t* edges, uint64_t* unsure) {
  if (rule.integers) {
    simd().integer_product(reinterpret_cast<const int16_t*>(rows.panels),
                           reinterpret_cast<const int16_t*>(columns.panels), rule.depth, tile.sums);
    simd().integer_threshold(tile.sums, rows.scales, columns.scales, static_cast<float>(rule.tau),
                             edges, unsure);
  } else {
    simd().tile_product(reinterpret_cast<const float*>(rows.panels),
                        reinterpret_cast<const float*>(columns.panels), rule.d, tile.floats);
    simd().tile_threshold(tile.floats, rule.low, rule.high, edges, unsure);
  }
}

}  // namespace selfment::cpu
