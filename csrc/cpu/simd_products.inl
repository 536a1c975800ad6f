// Part of simd_kernels.inl: products with the graph.

// This is the method of the Four Russians: all sums of subsets of a few neighbouring elements of x
// are tabulated; a few bits of a row then look up their sum.
//
// A sum has one order, whatever the tables. The set elements of 4 neighbours are added from left to
// right, the sums of two such fours make that of a byte, and the bytes are added from left to right
// to the sum of the row.

#if defined(__AVX512F__)

// A table has 16 sums for each 4 elements: it is two registers, and one permutation looks up 8
// rows.
constexpr int64_t kTableSize = 16 * 16;

void subset_sums(const double* x, int64_t words, double* table) {
  for (int64_t nibble = 0; nibble < words * 16; ++nibble, x += 4, table += 16) {
    __m512d low = _mm512_maskz_mov_pd(0b10101010, _mm512_set1_pd(x[0]));
    low = _mm512_add_pd(low, _mm512_maskz_mov_pd(0b11001100, _mm512_set1_pd(x[1])));
    low = _mm512_add_pd(low, _mm512_maskz_mov_pd(0b11110000, _mm512_set1_pd(x[2])));
    _mm512_storeu_pd(table, low);
    _mm512_storeu_pd(table + 8, _mm512_add_pd(low, _mm512_set1_pd(x[3])));
  }
}

void bits_matvec(const uint64_t* bits, int64_t words, int64_t rows, const double* table,
                 double* y) {
  constexpr int kBlocks = kTile / kDoubles;
  __m512d s[kBlocks];
  for (int r = 0; r < kBlocks; ++r) s[r] = _mm512_setzero_pd();
  for (int64_t w = 0; w < words; ++w) {
    __m512i row[kBlocks];
    for (int r = 0; r < kBlocks; ++r) row[r] = _mm512_loadu_si512(bits + w * rows + r * kDoubles);
    for (int byte = 0; byte < 8; ++byte, table += 32) {
      __m512d sums[4];
      for (int part = 0; part < 4; ++part) sums[part] = _mm512_loadu_pd(table + 8 * part);
#pragma GCC unroll 8
      for (int r = 0; r < kBlocks; ++r) {
        // The permutation reads only the lowest four bits of each index.
        const __m512d low = _mm512_permutex2var_pd(sums[0], row[r], sums[1]);
        row[r] = _mm512_srli_epi64(row[r], 4);
        const __m512d high = _mm512_permutex2var_pd(sums[2], row[r], sums[3]);
        row[r] = _mm512_srli_epi64(row[r], 4);
        s[r] = _mm512_add_pd(s[r], _mm512_add_pd(low, high));
      }
    }
  }
  for (int r = 0; r < kBlocks; ++r) _mm512_storeu_pd(y + r * kDoubles, s[r]);
}

#else

// A table has 256 sums for each 8 elements.
constexpr int64_t kTableSize = 8 * 256;

// A register of doubles. GCC splits larger vectors badly.
#if defined(__AVX2__)
typedef double Part __attribute__((vector_size(32)));
inline Part first_sums(const double* x) { return Part{0, x[0], x[1], x[0] + x[1]}; }
#else
typedef double Part __attribute__((vector_size(16)));
inline Part first_sums(const double* x) { return Part{0, x[0]}; }
#endif
constexpr int kPart = sizeof(Part) / sizeof(double), kParts = 16 / kPart;

// The 16 sums of subsets of four elements.
inline void sums_of_four(const double* x, Part* sums) {
  sums[0] = first_sums(x);
#pragma GCC unroll 8
  for (int i = 1; i < kParts; ++i) {
    const int highest = 31 - __builtin_clz(i);
    sums[i] = sums[i - (1 << highest)] + x[__builtin_ctz(kPart) + highest];
  }
}

void subset_sums(const double* x, int64_t words, double* table) {
  for (int64_t byte = 0; byte < words * 8; ++byte, x += 8) {
    Part low[kParts], high[kParts];
    sums_of_four(x, low);
    sums_of_four(x + 4, high);
#pragma GCC unroll 8
    for (int i = 0; i < kParts; ++i)
#pragma GCC unroll 4
      for (int j = 0; j < kPart; ++j)
#pragma GCC unroll 8
        for (int k = 0; k < kParts; ++k, table += kPart) {
          const Part sums = low[k] + high[i][j];
          std::memcpy(table, &sums, sizeof sums);
        }
  }
}

void bits_matvec(const uint64_t* bits, int64_t words, int64_t rows, const double* table,
                 double* y) {
  for (int64_t i = 0; i < kTile; ++i) y[i] = 0;
  for (int64_t w = 0; w < words; ++w, table += kTableSize) {
    for (int64_t i = 0; i < kTile; ++i) {
      const uint64_t row = bits[w * rows + i];
      double s = y[i];
#pragma GCC unroll 8
      for (int b = 0; b < 8; ++b) s += table[b * 256 + (row >> (8 * b) & 255)];
      y[i] = s;
    }
  }
}

#endif

#if defined(__AVX512F__)

// Returns the sums of eight rows, each in the order of sum().
inline __m512d sums(const __m512d* row) {
  const auto halves = [](const __m512d& a, const __m512d& b) __attribute__((always_inline)) {
    return _mm512_add_pd(_mm512_shuffle_f64x2(a, b, 0x44), _mm512_shuffle_f64x2(a, b, 0xEE));
  };
  const auto quarters = [](const __m512d& a, const __m512d& b) __attribute__((always_inline)) {
    return _mm512_add_pd(_mm512_shuffle_f64x2(a, b, 0x88), _mm512_shuffle_f64x2(a, b, 0xDD));
  };
  const __m512d even = quarters(halves(row[0], row[2]), halves(row[4], row[6]));
  const __m512d odd = quarters(halves(row[1], row[3]), halves(row[5], row[7]));
  return _mm512_add_pd(_mm512_unpacklo_pd(even, odd), _mm512_unpackhi_pd(even, odd));
}

// Byte i of of[mask] is the number of set bits of the mask below i.
struct Ranks {
  uint64_t of[256];
  constexpr Ranks() : of() {
    for (uint64_t mask = 0; mask < 256; ++mask)
      for (uint64_t i = 0, rank = 0; i < 8; rank += mask >> i++ & 1) of[mask] |= rank << (8 * i);
  }
};
constexpr Ranks kRanks;

// Returns the next weights, one for each set bit of the byte and in its place, else 0; it reads
// eight. A permutation takes a third of the time of the expansion instruction for this.
inline __m512d expand(uint64_t byte, const float* weight) {
  const __m128i ranks = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(kRanks.of + byte));
  return _mm512_cvtps_pd(_mm256_maskz_permutexvar_ps(
      static_cast<__mmask8>(byte), _mm256_cvtepu8_epi32(ranks), _mm256_loadu_ps(weight)));
}

template <int kCount>
int64_t multiply_tile(const uint64_t* mask, const float* weights, int64_t stride, const double* xi,
                      const double* xj, double* yi, double* yj) {
  const float* weight = weights;
  constexpr int kBlocks = kTile / kDoubles;
  __m512d y[kCount][kBlocks];
  for (int c = 0; c < kCount; ++c)
    for (int b = 0; b < kBlocks; ++b) y[c][b] = _mm512_setzero_pd();
  for (int64_t first = 0; first < kTile; first += kDoubles) {
    __m512d s[kCount][kDoubles];
    for (int r = 0; r < kDoubles; ++r) {
      const uint64_t row = mask[first + r];
      __m512d xr[kCount], sum[kCount];
      for (int c = 0; c < kCount; ++c) {
        xr[c] = _mm512_set1_pd(xi[c * stride + first + r]);
        sum[c] = _mm512_setzero_pd();
      }
#pragma GCC unroll 8
      for (int b = 0; b < kBlocks; ++b) {
        const uint64_t byte = row >> (8 * b) & 255;
        const __m512d v = expand(byte, weight);
        weight += __builtin_popcountll(byte);
#pragma GCC unroll 2
        for (int c = 0; c < kCount; ++c) {
          sum[c] = _mm512_fmadd_pd(v, load(xj + c * stride + b * kDoubles), sum[c]);
          y[c][b] = _mm512_fmadd_pd(v, xr[c], y[c][b]);
        }
      }
      for (int c = 0; c < kCount; ++c) s[c][r] = sum[c];
    }
    for (int c = 0; c < kCount; ++c) {
      double* out = yi + c * stride + first;
      store(out, load(out) + sums(s[c]));
    }
  }
  for (int c = 0; c < kCount && yj != nullptr; ++c) {
    for (int b = 0; b < kBlocks; ++b) {
      double* out = yj + c * stride + b * kDoubles;
      store(out, load(out) + y[c][b]);
    }
  }
  return weight - weights;
}

#else

template <int kCount>
int64_t multiply_tile(const uint64_t* mask, const float* weights, int64_t stride, const double* xi,
                      const double* xj, double* yi, double* yj) {
  const float* weight = weights;
  double unused[kCount * kTile];
  int64_t next = stride;
  if (yj == nullptr) {
    std::memset(unused, 0, sizeof unused);
    yj = unused;
    next = kTile;
  }
  for (int64_t i = 0; i < kTile; ++i) {
    double s[kCount] = {};
    for (uint64_t bits = mask[i]; bits != 0; bits &= bits - 1, ++weight) {
      const int j = __builtin_ctzll(bits);
      for (int c = 0; c < kCount; ++c) {
        s[c] += *weight * xj[c * stride + j];
        yj[c * next + j] += *weight * xi[c * stride + i];
      }
    }
    for (int c = 0; c < kCount; ++c) yi[c * stride + i] += s[c];
  }
  return weight - weights;
}

#endif

int64_t tile_matvec(const uint64_t* mask, const float* weights, int64_t columns, int64_t stride,
                    const double* xi, const double* xj, double* yi, double* yj) {
  static_assert(kAtOnce == 2, "as many cases");
  const auto multiply = columns == 1 ? multiply_tile<1> : multiply_tile<2>;
  return multiply(mask, weights, stride, xi, xj, yi, yj);
}
