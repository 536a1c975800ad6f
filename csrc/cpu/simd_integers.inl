// Part of simd_kernels.inl: the similarities of a tile from integers.

#if defined(__AVX2__)

double quantise(const float* f, int64_t depth, float least, int16_t* integers, float* step) {
  const auto at = [f](int64_t k) __attribute__((always_inline)) {
    Floats v;
    std::memcpy(&v, f + k, sizeof v);
    return v;
  };
  Floats largest = {};
  for (int64_t k = 0; k < depth; k += kQuantum) {
    const Floats v = at(k), size = v < 0 ? -v : v;
    largest = size > largest ? size : largest;
  }
  float unit = least;
  for (int l = 0; l < kDoubles; ++l)
    unit = largest[l] / 32766.0f > unit ? largest[l] / 32766.0f : unit;
  const float inverse = 1 / unit;
  // Adding this number rounds to an integer.
  constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23
  Doubles squares = {};
  for (int64_t k = 0; k < depth; k += kQuantum) {
    const Floats v = at(k), q = (v * inverse + kRounder) - kRounder;
    const Doubles rest = __builtin_convertvector(v - q * unit, Doubles);
    squares += rest * rest;
    const Halves halves = __builtin_convertvector(__builtin_convertvector(q, Integers), Halves);
    std::memcpy(integers + k, &halves, sizeof halves);
  }
  *step = unit;
  return __builtin_sqrt(sum(squares));
}

#if defined(__AVX512F__)
typedef __m512i Pairs;
constexpr int kPairRows = 8;
inline Pairs repeat(int32_t pair) { return _mm512_set1_epi32(pair); }
inline void add_products(Pairs& sum, const Pairs& a, const Pairs& b) {
#if defined(__AVX512VNNI__)
  // The intrinsic makes GCC 12 copy every sum.
  asm("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
#else
  sum = _mm512_add_epi32(sum, _mm512_madd_epi16(a, b));
#endif
}
#else
typedef __m256i Pairs;
constexpr int kPairRows = 4;
inline Pairs repeat(int32_t pair) { return _mm256_set1_epi32(pair); }
inline void add_products(Pairs& sum, const Pairs& a, const Pairs& b) {
  sum = _mm256_add_epi32(sum, _mm256_madd_epi16(a, b));
}
#endif

void integer_product(const int16_t* a, const int16_t* b, int64_t depth, int32_t* tile) {
  constexpr int64_t kDeep = 256;  // pairs of elements at a time, which fit into the cache
  constexpr int kVectors = 2, kWide = sizeof(Pairs) / 4;
  const int64_t panel = depth * kLane;
  for (int64_t first = 0; first < depth / 2; first += kDeep) {
    const int64_t deep = depth / 2 - first < kDeep ? depth / 2 - first : kDeep;
    for (int64_t column = 0; column < kTile; column += kVectors * kWide) {
      const int16_t* right[kVectors];
      for (int v = 0; v < kVectors; ++v) {
        const int64_t at = column + v * kWide;
        right[v] = b + at / kLane * panel + (first * kLane + at % kLane) * 2;
      }
      for (int64_t row = 0; row < kTile; row += kPairRows) {
        const int16_t* left = a + row / kLane * panel + (first * kLane + row % kLane) * 2;
        Pairs s[kPairRows][kVectors] = {};
        for (int64_t k = 0; k < deep; ++k) {
          Pairs columns[kVectors];
#pragma GCC unroll 8
          for (int v = 0; v < kVectors; ++v)
            std::memcpy(&columns[v], right[v] + k * kLane * 2, sizeof(Pairs));
#pragma GCC unroll 8
          for (int r = 0; r < kPairRows; ++r) {
            int32_t pair;
            std::memcpy(&pair, left + (k * kLane + r) * 2, sizeof pair);
            const Pairs repeated = repeat(pair);
#pragma GCC unroll 8
            for (int v = 0; v < kVectors; ++v) add_products(s[r][v], repeated, columns[v]);
          }
        }
#pragma GCC unroll 8
        for (int r = 0; r < kPairRows; ++r) {
#pragma GCC unroll 8
          for (int v = 0; v < kVectors; ++v) {
            typedef int32_t Sums __attribute__((vector_size(sizeof(Pairs))));
            int32_t* out = tile + (row + r) * kTile + column + v * kWide;
            Sums total, before;
            std::memcpy(&total, &s[r][v], sizeof total);
            if (first > 0) {
              std::memcpy(&before, out, sizeof before);
              total += before;
            }
            std::memcpy(out, &total, sizeof total);
          }
        }
      }
    }
  }
}

void integer_threshold(const int32_t* tile, const RowScales& rows, const RowScales& columns,
                       float tau, uint64_t* above, uint64_t* unsure) {
  for (int64_t i = 0; i < kTile; ++i) {
    uint64_t over = 0, under = 0;
    for (int64_t j = 0; j < kTile; j += kDoubles) {
      Integers products;
      Floats steps, margins;
      std::memcpy(&products, tile + i * kTile + j, sizeof products);
      std::memcpy(&steps, columns.step + j, sizeof steps);
      std::memcpy(&margins, columns.margin + j, sizeof margins);
      const Floats difference =
          __builtin_convertvector(products, Floats) * (steps * rows.step[i]) - tau;
      margins += rows.margin[i];
      const auto bits = [](const Integers& mask) __attribute__((always_inline)) {
        const int set = _mm256_movemask_ps(reinterpret_cast<const __m256&>(mask));
        return static_cast<uint64_t>(static_cast<uint32_t>(set));
      };
      over |= bits(difference > margins) << j;
      under |= bits(difference < -margins) << j;
    }
    above[i] = over;
    unsure[i] = ~(over | under);
  }
}

#else

constexpr decltype(Simd::quantise) quantise = nullptr;
constexpr decltype(Simd::integer_product) integer_product = nullptr;
constexpr decltype(Simd::integer_threshold) integer_threshold = nullptr;

#endif
