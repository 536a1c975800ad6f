#define SELFMENT_SIMD kSimdPortable
#define SELFMENT_SIMD_NAME "portable"
#include "simd_kernels.inl"
