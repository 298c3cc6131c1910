/* The few parts of ONNX Runtime's C interface that kernels of one's own need.
 *
 * ONNX Runtime only ever appends to its tables of functions, so that a function keeps its place in
 * them from the version on that brought it. Its headers come with no wheel; a board has the wheel
 * alone. Places are those of the public header (onnxruntime_c_api.h), version 18 of the interface.
 */
#ifndef S2A_ORT_ABI_H
#define S2A_ORT_ABI_H

#include <stddef.h>
#include <stdint.h>

#define ORT_API_VERSION 18

typedef struct OrtStatus OrtStatus; /* NULL is success */
typedef struct OrtValue OrtValue;
typedef struct OrtTypeInfo OrtTypeInfo;
typedef struct OrtKernelInfo OrtKernelInfo;
typedef struct OrtKernelContext OrtKernelContext;
typedef struct OrtDomain OrtDomain;
typedef struct OrtSessionOptions OrtSessionOptions;
typedef void (*OrtFunction)(void);

/* ONNXTensorElementDataType */
enum { ORT_FLOAT = 1, ORT_UINT8 = 2, ORT_INT8 = 3, ORT_UINT16 = 4, ORT_BFLOAT16 = 16 };
enum { ORT_FAIL = 1, ORT_INVALID_ARGUMENT = 2 };

enum {
  ORT_CREATE_STATUS = 0,
  ORT_CREATE_DOMAIN = 26,
  ORT_DOMAIN_ADD = 27,
  ORT_ADD_DOMAIN = 28,
  ORT_TENSOR_DATA = 51,
  ORT_ELEMENT_COUNT = 64,
  ORT_TYPE_AND_SHAPE = 65,
  ORT_ATTRIBUTE_FLOAT = 85,
  ORT_ATTRIBUTE_INT64 = 86,
  ORT_INPUT = 90,
  ORT_OUTPUT = 91,
  ORT_RELEASE_SHAPE = 99,
  ORT_ATTRIBUTE_FLOATS = 162,
  ORT_ATTRIBUTE_INT64S = 163,
  ORT_PARALLEL_FOR = 274,
};

typedef struct { OrtFunction at[ORT_PARALLEL_FOR + 1]; } OrtApi; /* and more behind them */
typedef struct {
  const OrtApi* (*get_api)(uint32_t version);
  const char* (*version_string)(void);
} OrtApiBase;

#define ORT(api, place, type) ((type)(api)->at[place])

typedef OrtStatus* (*CreateStatus)(int code, const char* message);
typedef OrtStatus* (*CreateDomain)(const char* name, OrtDomain** out);
struct OrtCustomOp;
typedef OrtStatus* (*DomainAdd)(OrtDomain* domain, const struct OrtCustomOp* op);
typedef OrtStatus* (*AddDomain)(OrtSessionOptions* options, OrtDomain* domain);
typedef OrtStatus* (*TensorData)(OrtValue* value, void** out);
typedef OrtStatus* (*TypeAndShape)(const OrtValue* value, OrtTypeInfo** out);
typedef OrtStatus* (*ElementCount)(const OrtTypeInfo* info, size_t* out);
typedef void (*ReleaseShape)(OrtTypeInfo* info);
typedef OrtStatus* (*AttributeFloat)(const OrtKernelInfo* info, const char* name, float* out);
typedef OrtStatus* (*AttributeInt64)(const OrtKernelInfo* info, const char* name, int64_t* out);
typedef OrtStatus* (*AttributeFloats)(const OrtKernelInfo* info, const char* name, float* out,
                                      size_t* size);
typedef OrtStatus* (*AttributeInt64s)(const OrtKernelInfo* info, const char* name, int64_t* out,
                                      size_t* size);
typedef OrtStatus* (*Input)(const OrtKernelContext* context, size_t index, const OrtValue** out);
typedef OrtStatus* (*Output)(OrtKernelContext* context, size_t index, const int64_t* dims,
                             size_t rank, OrtValue** out);
typedef OrtStatus* (*ParallelFor)(const OrtKernelContext* context, void (*run)(void*, size_t),
                                  size_t total, size_t batches, void* data);

/* What a kernel is to the runtime; functions that are not needed are NULL. */
typedef struct OrtCustomOp {
  uint32_t version;
  void* (*create)(const struct OrtCustomOp*, const OrtApi*, const OrtKernelInfo*);
  const char* (*name)(const struct OrtCustomOp*);
  const char* (*provider)(const struct OrtCustomOp*);
  int (*input_type)(const struct OrtCustomOp*, size_t);
  size_t (*input_count)(const struct OrtCustomOp*);
  int (*output_type)(const struct OrtCustomOp*, size_t);
  size_t (*output_count)(const struct OrtCustomOp*);
  void (*compute)(void*, OrtKernelContext*);
  void (*destroy)(void*);
  int (*input_kind)(const struct OrtCustomOp*, size_t);
  int (*output_kind)(const struct OrtCustomOp*, size_t);
  int (*input_memory)(const struct OrtCustomOp*, size_t);
  int (*variadic_input_arity)(const struct OrtCustomOp*);
  int (*variadic_input_alike)(const struct OrtCustomOp*);
  int (*variadic_output_arity)(const struct OrtCustomOp*);
  int (*variadic_output_alike)(const struct OrtCustomOp*);
  OrtStatus* (*create2)(const struct OrtCustomOp*, const OrtApi*, const OrtKernelInfo*, void**);
  OrtStatus* (*compute2)(void*, OrtKernelContext*);
  OrtStatus* (*infer_shapes)(const struct OrtCustomOp*, void*);
  int (*first_version)(const struct OrtCustomOp*);
  int (*last_version)(const struct OrtCustomOp*);
  size_t (*in_place)(int**, int**);
  void (*free_in_place)(int*, int*);
  size_t (*aliases)(int**, int**);
  void (*free_aliases)(int*, int*);
} OrtCustomOp;

#endif
