// Functions marked DHPE_HD compile for the host and, under nvcc, for the device: the same maths on both.
#pragma once

#if defined(__CUDACC__)
#define DHPE_HD __host__ __device__ __forceinline__
#else
#define DHPE_HD inline
#endif

// Code that is compiled once per instruction set lives in a namespace named after it, so that the linker can never
// merge an AVX-512 copy of an inline function into the baseline.
#if defined(DHPE_ISA)
#define DHPE_MATH_NAMESPACE DHPE_ISA
#else
#define DHPE_MATH_NAMESPACE generic
#endif
