// Includes the file that KERNELS names for each format of weights: FORMAT, its name. ``multiply`` and ``expand`` are defined
// for the format then.
#define FORMAT f32
#include "floats_format.h"
#include KERNELS
#undef FORMAT
#define FORMAT f16
#include "floats_format.h"
#include KERNELS
#undef FORMAT
#define FORMAT bf16
#include "floats_format.h"
#include KERNELS
#undef FORMAT
#define FORMAT q4_0
#include "bytes_format.h"
#include KERNELS
#undef FORMAT
#define FORMAT q4_1
#include "bytes_format.h"
#include KERNELS
#undef FORMAT
#define FORMAT q5_0
#include "bytes_format.h"
#include KERNELS
#undef FORMAT
#define FORMAT q8_0
#include "bytes_format.h"
#include KERNELS
#undef FORMAT
#define FORMAT q8_16
#include "bytes_format.h"
#include KERNELS
#undef FORMAT
#define FORMAT q4_k
#include "bytes_format.h"
#include KERNELS
#undef FORMAT
#define FORMAT q5_k
#include "bytes_format.h"
#include KERNELS
#undef FORMAT
#define FORMAT q6_k
#include "bytes_format.h"
#include KERNELS
#undef FORMAT
#define FORMAT mxfp4
#include "bytes_format.h"
#include KERNELS
#undef FORMAT
