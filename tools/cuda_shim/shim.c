/* CUDA libraries without a GPU: memory is the host's, kernels do nothing.

   Enough for ONNX Runtime's CUDA provider to be loaded, to say which nodes it takes, and to ask for
   the memory that it would ask a device for. What a step computes is meaningless. Functions that are
   not here are made by tools/cuda_without_gpu.py and answer "success".
   Field offsets of cudaDeviceProp are those of CUDA 12 and 13. */
#include <malloc.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

enum { OUT_OF_MEMORY = 2, PROCESSORS = 8, MAJOR = 8, MINOR = 7 };
static size_t held, peak, total = (size_t)8 << 30;

size_t shim_held(void) { return held; }
size_t shim_peak(void) { return peak; }
void shim_reset_peak(void) { peak = held; }
void shim_set_total(size_t bytes) { total = bytes; }

int cudaMalloc(void **made, size_t bytes) {
  *made = NULL;
  if (held + bytes > total || posix_memalign(made, 512, bytes ? bytes : 1)) return OUT_OF_MEMORY;
  held += malloc_usable_size(*made);
  if (held > peak) peak = held;
  return 0;
}
int cudaMallocAsync(void **made, size_t bytes, void *s) { (void)s; return cudaMalloc(made, bytes); }
int cudaMallocFromPoolAsync(void **made, size_t bytes, void *pool, void *s) {
  (void)pool; (void)s;
  return cudaMalloc(made, bytes);
}
int cudaFree(void *gone) {
  if (gone) held -= malloc_usable_size(gone);
  free(gone);
  return 0;
}
int cudaFreeAsync(void *gone, void *s) { (void)s; return cudaFree(gone); }
int cudaMallocHost(void **made, size_t bytes) {
  return posix_memalign(made, 4096, bytes ? bytes : 1) ? OUT_OF_MEMORY : 0;
}
int cudaHostAlloc(void **made, size_t bytes, unsigned f) { (void)f; return cudaMallocHost(made, bytes); }
int cudaFreeHost(void *gone) { free(gone); return 0; }
int cudaMemcpy(void *to, const void *from, size_t n, int k) { (void)k; memcpy(to, from, n); return 0; }
int cudaMemcpyAsync(void *to, const void *from, size_t n, int k, void *s) {
  (void)s;
  return cudaMemcpy(to, from, n, k);
}
int cudaMemset(void *to, int value, size_t n) { memset(to, value, n); return 0; }
int cudaMemsetAsync(void *to, int value, size_t n, void *s) { (void)s; return cudaMemset(to, value, n); }
int cudaMemGetInfo(size_t *available, size_t *all) { *available = total - held; *all = total; return 0; }

int cudaGetDeviceCount(int *n) { *n = 1; return 0; }
int cudaGetDevice(int *n) { *n = 0; return 0; }
static void at(char *p, int offset, int value) { memcpy(p + offset, &value, sizeof value); }
static void size_at(char *p, int offset, size_t value) { memcpy(p + offset, &value, sizeof value); }
int cudaGetDeviceProperties(char *p, int device) {
  (void)device;
  strcpy(p, "no device");
  size_at(p, 288, total); size_at(p, 296, 49152); at(p, 304, 65536); at(p, 308, 32);
  size_at(p, 312, 1u << 30); at(p, 320, 1024);
  at(p, 324, 1024); at(p, 328, 1024); at(p, 332, 64);             /* threads of a block */
  at(p, 336, 0x7fffffff); at(p, 340, 65535); at(p, 344, 65535);   /* blocks of a grid */
  at(p, 360, MAJOR); at(p, 364, MINOR); at(p, 384, PROCESSORS); at(p, 388, PROCESSORS);
  return 0;
}
int cudaGetDeviceProperties_v2(char *p, int device) { return cudaGetDeviceProperties(p, device); }
int cudaDeviceGetAttribute(int *value, int attribute, int device) {
  (void)device;
  switch (attribute) {
    case 1: *value = 1024; break;         /* threads of a block */
    case 8: *value = 49152; break;        /* shared bytes of a block */
    case 10: *value = 32; break;          /* threads of a warp */
    case 16: *value = PROCESSORS; break;
    case 39: *value = 1536; break;        /* threads of a processor */
    case 75: *value = MAJOR; break;
    case 76: *value = MINOR; break;
    case 97: *value = 163840; break;      /* shared bytes of a block that opts in */
    default: *value = 0;
  }
  return 0;
}
int cudaRuntimeGetVersion(int *v) { *v = SHIM_CUDA; return 0; }
int cudaDriverGetVersion(int *v) { *v = SHIM_CUDA; return 0; }
const char *cudaGetErrorString(int e) { return e == OUT_OF_MEMORY ? "out of memory" : "no error"; }
const char *cudaGetErrorName(int e) { return e ? "cudaErrorMemoryAllocation" : "cudaSuccess"; }
const char *cudnnGetErrorString(int e) { (void)e; return "shim"; }
const char *cublasGetStatusName(int e) { (void)e; return "shim"; }
const char *cublasGetStatusString(int e) { (void)e; return "shim"; }
size_t cudnnGetVersion(void) { return 90800; }

static int handle(void **made) { *made = calloc(1, 64); return *made ? 0 : OUT_OF_MEMORY; }
#define HANDLE(name) int name(void **made) { return handle(made); }
HANDLE(cudaStreamCreate) HANDLE(cudaEventCreate) HANDLE(cublasCreate_v2) HANDLE(cublasLtCreate)
HANDLE(cublasLtMatmulDescCreate) HANDLE(cublasLtMatmulPreferenceCreate)
HANDLE(cublasLtMatrixLayoutCreate) HANDLE(cudnnCreate) HANDLE(cudnnCreateActivationDescriptor)
HANDLE(cudnnCreateConvolutionDescriptor) HANDLE(cudnnCreateDropoutDescriptor)
HANDLE(cudnnCreateFilterDescriptor) HANDLE(cudnnCreateLRNDescriptor)
HANDLE(cudnnCreatePoolingDescriptor) HANDLE(cudnnCreateRNNDataDescriptor)
HANDLE(cudnnCreateRNNDescriptor) HANDLE(cudnnCreateReduceTensorDescriptor)
HANDLE(cudnnCreateTensorDescriptor)
int cudaStreamCreateWithFlags(void **made, unsigned f) { (void)f; return handle(made); }
int cudaEventCreateWithFlags(void **made, unsigned f) { (void)f; return handle(made); }
int cudaMemPoolCreate(void **made, void *p) { (void)p; return handle(made); }
int cudnnBackendCreateDescriptor(int kind, void **made) { (void)kind; return handle(made); }
int cudaEventElapsedTime(float *ms, void *a, void *b) { (void)a; (void)b; *ms = 1; return 0; }
void **__cudaRegisterFatBinary(void *code) { static void *handles[4]; (void)code; return handles; }
int __cudaPopCallConfiguration(void *grid, void *block, size_t *shared, void **stream) {
  memset(grid, 0, 12); memset(block, 0, 12);
  *shared = 0; *stream = NULL;
  return 0;
}
int cudaFuncGetAttributes(void *a, const void *f) { (void)f; memset(a, 0, 128); at(a, 24, 1024); return 0; }
int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *n, const void *f, int b, size_t m,
                                                           unsigned flags) {
  (void)f; (void)b; (void)m; (void)flags;
  *n = 2;
  return 0;
}
