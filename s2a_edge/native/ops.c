/* The kernels as operators of the domain "s2a.edge", for ONNX Runtime's CPU provider.
 *
 * Every operator has the attributes `shape` (of its first output) and, where they mean something,
 * `size` and `inner` (a value seen as [outer, size, inner]), `step`, `offset`, `levels`. A graph is
 * untrusted: what is read and written follows from the number of elements that the operands really
 * have, and an operator whose attributes do not fit them fails before it touches any.
 */
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "kernels.h"
#include "ort_abi.h"

#define MAX_INPUTS 5
#define MAX_OUTPUTS 3
#define MAX_RANK 8
#define MAX_CHUNKS 16
#define LEAST_CHUNK 16384 /* elements: below, a second thread costs more than it gives */

typedef struct Spec Spec;

typedef struct {
  const OrtApi* api;
  const Spec* spec;
  int64_t shape[MAX_RANK];
  size_t rank;
  int64_t elements; /* of the first output */
  int64_t size, inner, offset, tanh_form;
  float step, epsilon;
  float levels[16];
} Kernel;

typedef struct {
  const Kernel* kernel;
  const void* in[MAX_INPUTS];
  void* out[MAX_OUTPUTS];
  int64_t units, per_chunk;
} Job;

struct Spec {
  OrtCustomOp op; /* first: the runtime hands this back */
  const char* name;
  int types_in[MAX_INPUTS], types_out[MAX_OUTPUTS]; /* ended by 0 */
  enum { SHAPE, WORDS, ROWS, LAST_IS_ONE } shapes_out[MAX_OUTPUTS]; /* the first is SHAPE */
  /* elements that each input must have; 0 if the attributes fit no operand */
  int (*counts)(const Kernel*, int64_t counts[MAX_INPUTS]);
  /* elements of the first output that one unit of work makes */
  int64_t (*grain)(const Kernel*);
  void (*run)(const Job*, int64_t first, int64_t last);
  int64_t (*work)(const Kernel*); /* elements that are read; NULL: those of the first output */
};

static int divides(int64_t part, int64_t whole) { return part > 0 && whole % part == 0; }

/* --- words of four codes, elementwise */

#define RUN_WORDS 64

static int64_t grain_words(const Kernel* k) { (void)k; return RUN_WORDS; }
static int64_t grain_codes(const Kernel* k) { (void)k; return 4 * RUN_WORDS; }

static int counts_pack_words(const Kernel* k, int64_t n[]) { n[0] = 4 * k->elements; return 1; }

static void run_pack_words(const Job* j, int64_t first, int64_t last) {
  int64_t begin = first * RUN_WORDS, end = last * RUN_WORDS;
  if (end > j->kernel->elements) end = j->kernel->elements;
  pack_words((const float*)j->in[0] + 4 * begin, 4 * (end - begin), j->kernel->step,
             (int)j->kernel->offset, (uint16_t*)j->out[0] + begin);
}

static int counts_unpack(const Kernel* k, int64_t n[]) {
  n[0] = k->elements / 4;
  n[1] = k->elements; /* of UnpackTimes */
  return divides(4, k->elements);
}

static void codes_of(const Job* j, int64_t first, int64_t last, int64_t* begin, int64_t* count) {
  int64_t end = last * 4 * RUN_WORDS;
  *begin = first * 4 * RUN_WORDS;
  *count = (end > j->kernel->elements ? j->kernel->elements : end) - *begin;
}

static void run_unpack_words(const Job* j, int64_t first, int64_t last) {
  int64_t begin, count;
  codes_of(j, first, last, &begin, &count);
  unpack_words((const uint16_t*)j->in[0] + begin / 4, count, j->kernel->levels,
               (float*)j->out[0] + begin);
}

static void run_unpack_times(const Job* j, int64_t first, int64_t last) {
  int64_t begin, count;
  codes_of(j, first, last, &begin, &count);
  unpack_times((const uint16_t*)j->in[0] + begin / 4, count, j->kernel->levels,
               (const float*)j->in[1] + begin, (float*)j->out[0] + begin);
}

/* --- [outer, size, inner], one scale for each column of a group; a unit is a row */

static int64_t grain_inner(const Kernel* k) { return k->inner; }
static int64_t grain_inner_words(const Kernel* k) { return k->inner / 4; }

static int counts_pack_columns(const Kernel* k, int64_t n[]) {
  n[0] = 4 * k->elements;
  n[1] = k->size > 0 ? n[0] / k->size : 0;
  return divides(k->size, n[0]) && divides(k->inner, n[1]) && divides(4, k->inner);
}

static void run_pack_columns(const Job* j, int64_t first, int64_t last) {
  const Kernel* k = j->kernel;
  for (int64_t row = first; row < last; ++row)
    pack_row((const float*)j->in[0] + row * k->inner,
             (const float*)j->in[1] + row / k->size * k->inner, k->inner, (int)k->offset,
             (uint16_t*)j->out[0] + row * k->inner / 4);
}

static int counts_unpack_columns(const Kernel* k, int64_t n[]) {
  n[0] = k->elements / 4;
  n[1] = k->size > 0 ? k->elements / k->size : 0;
  return divides(k->size, k->elements) && divides(k->inner, n[1]) && divides(4, k->inner);
}

static void run_unpack_columns(const Job* j, int64_t first, int64_t last) {
  const Kernel* k = j->kernel;
  for (int64_t row = first; row < last; ++row)
    unpack_row((const uint16_t*)j->in[0] + row * k->inner / 4,
               (const uint16_t*)j->in[1] + row / k->size * k->inner, k->inner, k->levels,
               (float*)j->out[0] + row * k->inner);
}

static int counts_maxima(const Kernel* k, int64_t n[]) {
  n[0] = k->elements * k->size;
  return k->size > 0 && divides(k->inner, k->elements);
}

static void run_maxima(const Job* j, int64_t first, int64_t last) {
  const Kernel* k = j->kernel;
  for (int64_t group = first; group < last; ++group)
    absolute_maxima((const float*)j->in[0] + group * k->size * k->inner, k->size, k->inner,
                    (float*)j->out[0] + group * k->inner);
}

/* --- rows of `inner` elements */

static int counts_quantize_rows(const Kernel* k, int64_t n[]) {
  n[0] = k->elements;
  return divides(k->inner, k->elements);
}

static void run_quantize_rows(const Job* j, int64_t first, int64_t last) {
  int64_t n = j->kernel->inner;
  quantize_rows((const float*)j->in[0] + first * n, last - first, n,
                (int8_t*)j->out[0] + first * n, (uint16_t*)j->out[1] + first);
}

static int counts_dequantize_rows(const Kernel* k, int64_t n[]) {
  n[0] = k->elements;
  n[1] = k->inner > 0 ? k->elements / k->inner : 0;
  return divides(k->inner, k->elements);
}

static void run_dequantize_rows(const Job* j, int64_t first, int64_t last) {
  int64_t n = j->kernel->inner;
  dequantize_rows((const int8_t*)j->in[0] + first * n, (const uint16_t*)j->in[1] + first,
                  last - first, n, (float*)j->out[0] + first * n);
}

/* Rows 0 to N/2 - 1 lie in the low halves of bytes, the others in the high halves of the same;
 * `size` rows of a half share scales. */
static int counts_halves(const Kernel* k, int64_t n[]) {
  int64_t half = k->inner > 0 ? k->elements / k->inner / 2 : 0; /* rows */
  n[0] = k->elements / 2;
  n[1] = k->size > 0 ? k->elements / k->size : 0;
  return half > 0 && k->elements == 2 * half * k->inner && divides(k->size, half);
}

static void run_halves(const Job* j, int64_t first, int64_t last) {
  const Kernel* k = j->kernel;
  int64_t half = k->elements / k->inner / 2;
  for (int64_t row = first; row < last; ++row)
    unpack_halves((const uint8_t*)j->in[0] + row % half * k->inner,
                  (const uint8_t*)j->in[1] + row / k->size * k->inner, k->inner, k->step,
                  row >= half, (float*)j->out[0] + row * k->inner);
}

static int counts_softmax(const Kernel* k, int64_t n[]) {
  n[0] = n[1] = k->elements;
  return divides(k->inner, k->elements);
}

static void run_softmax(const Job* j, int64_t first, int64_t last) {
  int64_t n = j->kernel->inner;
  softmax_gradient((const float*)j->in[0] + first * n, (const float*)j->in[1] + first * n,
                   last - first, n, (float*)j->out[0] + first * n);
}

static int counts_layer_norm(const Kernel* k, int64_t n[]) {
  n[0] = n[2] = k->elements;
  n[1] = k->inner;
  n[3] = k->inner > 0 ? k->elements / k->inner : 0;
  return divides(k->inner, k->elements);
}

static void run_layer_norm(const Job* j, int64_t first, int64_t last) {
  int64_t n = j->kernel->inner;
  layer_norm_gradient((const float*)j->in[0] + first * n, (const float*)j->in[1],
                      (const float*)j->in[2] + first * n, (const float*)j->in[3] + first,
                      last - first, n, (float*)j->out[0] + first * n);
}

static int counts_add(const Kernel* k, int64_t n[]) {
  for (int i = 0; i < MAX_INPUTS; ++i) n[i] = k->elements;
  return 1;
}

static void run_add(const Job* j, int64_t first, int64_t last) {
  int64_t begin, count;
  const float* terms[MAX_INPUTS];
  int given = 0;
  codes_of(j, first, last, &begin, &count);
  for (; given < MAX_INPUTS && j->in[given]; ++given)
    terms[given] = (const float*)j->in[given] + begin;
  add_all(terms, given, count, (float*)j->out[0] + begin);
}

#define SUM_COLUMNS 128 /* a unit: wide enough for whole cache lines, narrow enough to share */

static int64_t grain_columns(const Kernel* k) { (void)k; return SUM_COLUMNS; }
static int64_t work_columns(const Kernel* k) { return k->elements * k->size; }

static int counts_columns(const Kernel* k, int64_t n[]) {
  n[0] = k->elements * k->size;
  return k->size > 0 && k->elements <= INT64_C(1) << 32;
}

static void run_columns(const Job* j, int64_t first, int64_t last) {
  const Kernel* k = j->kernel;
  int64_t begin = first * SUM_COLUMNS, end = last * SUM_COLUMNS;
  if (end > k->elements) end = k->elements;
  column_sums((const float*)j->in[0] + begin, k->size, k->elements, end - begin,
              (float*)j->out[0] + begin);
}

static int counts_norm(const Kernel* k, int64_t n[]) {
  n[0] = k->elements;
  n[1] = n[2] = k->inner;
  return divides(k->inner, k->elements) && k->shape[k->rank - 1] == k->inner;
}

static void run_norm(const Job* j, int64_t first, int64_t last) {
  int64_t n = j->kernel->inner;
  layer_norm((const float*)j->in[0] + first * n, j->in[1], j->in[2], j->kernel->epsilon,
             last - first, n, (float*)j->out[0] + first * n, (float*)j->out[1] + first * n,
             (float*)j->out[2] + first);
}

static int counts_gelu(const Kernel* k, int64_t n[]) {
  n[0] = k->elements;
  n[1] = k->inner;
  return divides(k->inner, k->elements) && divides(4, k->inner) && k->step > 0.0f;
}

static void run_gelu(const Job* j, int64_t first, int64_t last) {
  const Kernel* k = j->kernel;
  gelu_words((const float*)j->in[0] + first * k->inner, j->in[1], last - first, k->inner, k->step,
             (int)k->tanh_form, (float*)j->out[0] + first * k->inner,
             (uint16_t*)j->out[1] + first * k->inner / 4);
}

/* --- what the runtime calls */

static OrtStatus* refuse(const Kernel* k, const char* why) {
  return ORT(k->api, ORT_CREATE_STATUS, CreateStatus)(ORT_INVALID_ARGUMENT, why);
}

static void read_attributes(Kernel* k, const OrtKernelInfo* info) {
  /* One that is not there stays 0; a status says no more than that, and is not freed for the few
   * bytes that it has, once for each node. */
  size_t rank = MAX_RANK, levels = 16;
  AttributeInt64 integer = ORT(k->api, ORT_ATTRIBUTE_INT64, AttributeInt64);
  if (ORT(k->api, ORT_ATTRIBUTE_INT64S, AttributeInt64s)(info, "shape", k->shape, &rank)) rank = 0;
  k->rank = rank <= MAX_RANK ? rank : 0;
  if (integer(info, "size", &k->size)) k->size = 0;
  if (integer(info, "inner", &k->inner)) k->inner = 0;
  if (integer(info, "offset", &k->offset)) k->offset = 0;
  if (integer(info, "tanh", &k->tanh_form)) k->tanh_form = 0;
  AttributeFloat real = ORT(k->api, ORT_ATTRIBUTE_FLOAT, AttributeFloat);
  if (real(info, "step", &k->step)) k->step = 1.0f;
  if (real(info, "epsilon", &k->epsilon)) k->epsilon = 0.0f;
  if (ORT(k->api, ORT_ATTRIBUTE_FLOATS, AttributeFloats)(info, "levels", k->levels, &levels))
    memset(k->levels, 0, sizeof k->levels);
}

static OrtStatus* create(const OrtCustomOp* op, const OrtApi* api, const OrtKernelInfo* info,
                         void** out) {
  Kernel* k = calloc(1, sizeof *k);
  if (!k) return ORT(api, ORT_CREATE_STATUS, CreateStatus)(ORT_FAIL, "out of memory");
  k->api = api;
  k->spec = (const Spec*)op;
  read_attributes(k, info);
  k->elements = k->rank > 0;
  for (size_t axis = 0; axis < k->rank; ++axis) {
    int64_t extent = k->shape[axis];
    if (extent < 1 || k->elements > (INT64_C(1) << 40) / extent) k->elements = 0;
    k->elements *= extent;
  }
  if (k->size < 0 || k->size > INT64_C(1) << 20 || k->inner < 0 || k->elements <= 0) {
    free(k);
    return ORT(api, ORT_CREATE_STATUS, CreateStatus)(ORT_INVALID_ARGUMENT,
                                                     "attributes of an s2a.edge operator");
  }
  *out = k;
  return NULL;
}

static OrtStatus* count(const Kernel* k, const OrtValue* value, size_t* elements) {
  OrtTypeInfo* info = NULL;
  OrtStatus* status = ORT(k->api, ORT_TYPE_AND_SHAPE, TypeAndShape)(value, &info);
  if (status) return status;
  status = ORT(k->api, ORT_ELEMENT_COUNT, ElementCount)(info, elements);
  ORT(k->api, ORT_RELEASE_SHAPE, ReleaseShape)(info);
  return status;
}

static OrtStatus* operands(const Kernel* k, OrtKernelContext* context, Job* job) {
  int64_t counts[MAX_INPUTS] = {0};
  if (!k->spec->counts(k, counts)) return refuse(k, "attributes that fit no operands");
  for (size_t i = 0; i < MAX_INPUTS && k->spec->types_in[i]; ++i) {
    const OrtValue* value = NULL;
    size_t elements = 0;
    OrtStatus* status = ORT(k->api, ORT_INPUT, Input)(context, i, &value);
    if (!status && !value) return refuse(k, "an operand is missing");
    if (!status) status = count(k, value, &elements);
    if (!status && (int64_t)elements != counts[i]) return refuse(k, "operands of other sizes");
    if (!status)
      status = ORT(k->api, ORT_TENSOR_DATA, TensorData)((OrtValue*)value, (void**)&job->in[i]);
    if (status) return status;
  }
  return NULL;
}

static size_t result_shape(const Kernel* k, size_t index, int64_t dims[MAX_RANK]) {
  memcpy(dims, k->shape, sizeof k->shape);
  switch (k->spec->shapes_out[index]) {
    case WORDS: dims[0] = k->elements / 4; return 1;
    case ROWS: dims[0] = k->elements / k->inner; return 1;
    case LAST_IS_ONE: dims[k->rank - 1] = 1; return k->rank;
    default: return k->rank;
  }
}

static OrtStatus* results(const Kernel* k, OrtKernelContext* context, Job* job) {
  for (size_t i = 0; i < MAX_OUTPUTS && k->spec->types_out[i]; ++i) {
    OrtValue* value = NULL;
    int64_t dims[MAX_RANK];
    size_t rank = result_shape(k, i, dims);
    OrtStatus* status = ORT(k->api, ORT_OUTPUT, Output)(context, i, dims, rank, &value);
    if (!status && !value) return refuse(k, "an output that nothing reads");
    if (!status) status = ORT(k->api, ORT_TENSOR_DATA, TensorData)(value, &job->out[i]);
    if (status) return status;
  }
  return NULL;
}

static void chunk(void* data, size_t index) {
  const Job* job = data;
  int64_t first = (int64_t)index * job->per_chunk, last = first + job->per_chunk;
  if (last > job->units) last = job->units;
  if (first < last) job->kernel->spec->run(job, first, last);
}

static OrtStatus* compute(void* kernel, OrtKernelContext* context) {
  const Kernel* k = kernel;
  Job job = {.kernel = k};
  OrtStatus* status = operands(k, context, &job);
  if (!status) status = results(k, context, &job);
  if (status) return status;
  int64_t grain = k->spec->grain(k);
  job.units = (k->elements + grain - 1) / grain;
  int64_t chunks = (k->spec->work ? k->spec->work(k) : k->elements) / LEAST_CHUNK;
  chunks = chunks < 1 ? 1 : chunks > MAX_CHUNKS ? MAX_CHUNKS : chunks;
  if (chunks > job.units) chunks = job.units;
  job.per_chunk = (job.units + chunks - 1) / chunks;
  if (chunks == 1) {
    chunk(&job, 0);
    return NULL;
  }
  return ORT(k->api, ORT_PARALLEL_FOR, ParallelFor)(context, chunk, (size_t)chunks, 0, &job);
}

static const Spec* spec(const OrtCustomOp* op) { return (const Spec*)op; }

static size_t length(const int* types, size_t most) {
  size_t n = 0;
  while (n < most && types[n]) ++n;
  return n;
}

static const char* op_name(const OrtCustomOp* op) { return spec(op)->name; }
static const char* op_provider(const OrtCustomOp* op) { (void)op; return NULL; /* the CPU's */ }
static int op_input(const OrtCustomOp* op, size_t i) { return spec(op)->types_in[i]; }
static int op_output(const OrtCustomOp* op, size_t i) { return spec(op)->types_out[i]; }
static size_t op_inputs(const OrtCustomOp* op) { return length(spec(op)->types_in, MAX_INPUTS); }
static size_t op_outputs(const OrtCustomOp* op) { return length(spec(op)->types_out, MAX_OUTPUTS); }
static int op_required(const OrtCustomOp* op, size_t i) { (void)op; (void)i; return 0; }
static int op_one(const OrtCustomOp* op) { (void)op; return 1; }
static int op_latest(const OrtCustomOp* op) { (void)op; return INT_MAX; }

#define OP                                                                                        \
  {                                                                                               \
    .version = ORT_API_VERSION, .name = op_name, .provider = op_provider, .input_type = op_input, \
    .input_count = op_inputs, .output_type = op_output, .output_count = op_outputs,               \
    .destroy = free, .input_kind = op_required, .output_kind = op_required,                       \
    .input_memory = op_required, .variadic_input_arity = op_one, .variadic_input_alike = op_one,  \
    .variadic_output_arity = op_one, .variadic_output_alike = op_one, .create2 = create,          \
    .compute2 = compute, .first_version = op_one, .last_version = op_latest                       \
  }

#define F32 ORT_FLOAT
static const Spec SPECS[] = {
    {OP, "PackWords", {F32}, {ORT_UINT16}, {SHAPE}, counts_pack_words, grain_words,
     run_pack_words, NULL},
    {OP, "PackColumns", {F32, F32}, {ORT_UINT16}, {SHAPE}, counts_pack_columns, grain_inner_words,
     run_pack_columns, NULL},
    {OP, "UnpackWords", {ORT_UINT16}, {F32}, {SHAPE}, counts_unpack, grain_codes,
     run_unpack_words, NULL},
    {OP, "UnpackTimes", {ORT_UINT16, F32}, {F32}, {SHAPE}, counts_unpack, grain_codes,
     run_unpack_times, NULL},
    {OP, "UnpackColumns", {ORT_UINT16, ORT_BFLOAT16}, {F32}, {SHAPE}, counts_unpack_columns,
     grain_inner, run_unpack_columns, NULL},
    {OP, "AbsoluteMaxima", {F32}, {F32}, {SHAPE}, counts_maxima, grain_inner, run_maxima, NULL},
    {OP, "GeluWords", {F32, F32}, {F32, ORT_UINT16}, {SHAPE, WORDS}, counts_gelu, grain_inner,
     run_gelu, NULL},
    {OP, "QuantizeRows", {F32}, {ORT_INT8, ORT_BFLOAT16}, {SHAPE, ROWS}, counts_quantize_rows,
     grain_inner, run_quantize_rows, NULL},
    {OP, "DequantizeRows", {ORT_INT8, ORT_BFLOAT16}, {F32}, {SHAPE}, counts_dequantize_rows,
     grain_inner, run_dequantize_rows, NULL},
    {OP, "UnpackHalves", {ORT_UINT8, ORT_UINT8}, {F32}, {SHAPE}, counts_halves, grain_inner,
     run_halves, NULL},
    {OP, "Add3", {F32, F32, F32}, {F32}, {SHAPE}, counts_add, grain_codes, run_add, NULL},
    {OP, "Add4", {F32, F32, F32, F32}, {F32}, {SHAPE}, counts_add, grain_codes, run_add, NULL},
    {OP, "Add5", {F32, F32, F32, F32, F32}, {F32}, {SHAPE}, counts_add, grain_codes, run_add, NULL},
    {OP, "ColumnSums", {F32}, {F32}, {SHAPE}, counts_columns, grain_columns, run_columns,
     work_columns},
    {OP, "SoftmaxGradient", {F32, F32}, {F32}, {SHAPE}, counts_softmax, grain_inner, run_softmax,
     NULL},
    {OP, "LayerNorm", {F32, F32, F32}, {F32, F32, F32}, {SHAPE, SHAPE, LAST_IS_ONE}, counts_norm,
     grain_inner, run_norm, NULL},
    {OP, "LayerNormGradient", {F32, F32, F32, F32}, {F32}, {SHAPE}, counts_layer_norm, grain_inner,
     run_layer_norm, NULL},
};

/* What SessionOptions.register_custom_ops_library calls. */
__attribute__((visibility("default"))) OrtStatus* RegisterCustomOps(OrtSessionOptions* options,
                                                                    const OrtApiBase* base);

OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  static OrtDomain* domain; /* shared by all sessions, and there until the process ends */
  const OrtApi* api = base->get_api(ORT_API_VERSION);
  if (!api)
    return ORT(base->get_api(1), ORT_CREATE_STATUS, CreateStatus)(
        ORT_FAIL, "the s2a.edge operators need onnxruntime 1.18 or newer");
  if (!domain) {
    OrtDomain* made = NULL;
    OrtStatus* status = ORT(api, ORT_CREATE_DOMAIN, CreateDomain)("s2a.edge", &made);
    for (size_t i = 0; !status && i < sizeof SPECS / sizeof *SPECS; ++i)
      status = ORT(api, ORT_DOMAIN_ADD, DomainAdd)(made, &SPECS[i].op);
    if (status) return status;
    domain = made;
  }
  return ORT(api, ORT_ADD_DOMAIN, AddDomain)(options, domain);
}
