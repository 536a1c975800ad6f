#define SELFMENT_SIMD kSimdAvx512
#define SELFMENT_SIMD_NAME "avx512"
#include "simd_kernels.inl"
