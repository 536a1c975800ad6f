#define SELFMENT_SIMD kSimdAvx2
#define SELFMENT_SIMD_NAME "avx2"
#include "simd_kernels.inl"
