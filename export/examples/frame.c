// The interleaved detector on a video, frame by frame, with LiteRT's C API and nothing else.
//
//   cc -O2 frame.c -o frame -L$L -lLiteRt -lm -Wl,-rpath,$L    ($L holds libLiteRt.so, 2.x)
//   ./frame BUNDLE < frames.rgb > outputs.bin
//
// frames.rgb holds frames [F0_HEIGHT, F0_WIDTH, 3] of bytes, one after another. For each of them
// outputs.bin gets box_encodings and class_logits as stored, then boxes, scores, classes and count.

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// ---- What manifest.json says of the bundle; a client for any bundle reads it there.

#define F0_HEIGHT 96      // image.f0; the sides of image.f1 are FACTOR times shorter
#define F0_WIDTH 96
#define FACTOR 2
#define MEAN 128.0f       // image.mean, image.std
#define STD 128.0f
#define SCALE 0.0078125f  // of the tensor image
#define ZERO_POINT 0
#define TAU 9             // tau
static const struct {
  const char *input, *output;
  int initial;
} STATE[] = {{"c", "c_next", -128}, {"h", "h_next", -128}};  // state
enum { STATES = sizeof(STATE) / sizeof(STATE[0]) };

// ---- The part of LiteRT's headers that is used here.

typedef void* Handle;
typedef struct {
  unsigned rank : 7;
  bool has_strides : 1;
  int32_t dimensions[8];
  uint32_t strides[8];
} Layout;
typedef struct {
  int element_type;
  Layout layout;
} TensorType;
enum { CPU = 1, LOCK_READ = 0, LOCK_WRITE = 1 };

int LiteRtCreateEnvironment(int, const void*, Handle*);
int LiteRtCreateModelFromFile(Handle, const char*, Handle*);
int LiteRtCreateOptions(Handle*);
int LiteRtSetOptionsHardwareAccelerators(Handle, int);
int LiteRtCreateCompiledModel(Handle, Handle, Handle, Handle*);
int LiteRtGetNumModelSignatures(Handle, size_t*);
int LiteRtGetModelSignature(Handle, size_t, Handle*);
int LiteRtGetSignatureKey(Handle, const char**);
int LiteRtGetNumSignatureInputs(Handle, size_t*);
int LiteRtGetNumSignatureOutputs(Handle, size_t*);
int LiteRtGetSignatureInputName(Handle, size_t, const char**);
int LiteRtGetSignatureOutputName(Handle, size_t, const char**);
int LiteRtGetSignatureInputTensorByIndex(Handle, size_t, Handle*);
int LiteRtGetSignatureOutputTensorByIndex(Handle, size_t, Handle*);
int LiteRtGetRankedTensorType(Handle, TensorType*);
int LiteRtGetCompiledModelInputBufferRequirements(Handle, size_t, size_t, Handle*);
int LiteRtGetCompiledModelOutputBufferRequirements(Handle, size_t, size_t, Handle*);
int LiteRtGetCompiledModelOutputTensorLayouts(Handle, size_t, size_t, Layout*, bool);
int LiteRtCreateManagedTensorBufferFromRequirements(Handle, const TensorType*, Handle, Handle*);
int LiteRtGetTensorBufferPackedSize(Handle, size_t*);
int LiteRtLockTensorBuffer(Handle, void**, int);
int LiteRtUnlockTensorBuffer(Handle);
int LiteRtRunCompiledModel(Handle, size_t, size_t, Handle*, size_t, Handle*);

#define CHECK(call)                                             \
  do {                                                          \
    const int status = (call);                                  \
    if (status != 0) {                                          \
      fprintf(stderr, "error: status %d of %s\n", status, #call); \
      exit(1);                                                  \
    }                                                           \
  } while (0)

// ---- One signature of one graph, with a buffer for each of its tensors.

enum { MAX_TENSORS = 8 };
typedef struct {
  Handle compiled;
  size_t signature, inputs, outputs;
  const char *input_names[MAX_TENSORS], *output_names[MAX_TENSORS];
  Handle input_buffers[MAX_TENSORS], output_buffers[MAX_TENSORS];
} Call;

static Handle* find(const char** names, Handle* buffers, size_t count, const char* name) {
  for (size_t i = 0; i < count; ++i) {
    if (strcmp(names[i], name) == 0) return &buffers[i];
  }
  fprintf(stderr, "error: no tensor %s\n", name);
  exit(1);
}

static Handle* input(Call* call, const char* name) {
  return find(call->input_names, call->input_buffers, call->inputs, name);
}

static Handle* output(Call* call, const char* name) {
  return find(call->output_names, call->output_buffers, call->outputs, name);
}

static Call load(Handle environment, const char* bundle, const char* file, const char* signature) {
  char path[4096];
  snprintf(path, sizeof(path), "%s/%s", bundle, file);
  Handle model, options, found = NULL;
  Call call = {0};
  CHECK(LiteRtCreateModelFromFile(environment, path, &model));
  CHECK(LiteRtCreateOptions(&options));
  CHECK(LiteRtSetOptionsHardwareAccelerators(options, CPU));
  CHECK(LiteRtCreateCompiledModel(environment, model, options, &call.compiled));
  size_t count;
  CHECK(LiteRtGetNumModelSignatures(model, &count));
  for (; call.signature < count; ++call.signature) {
    const char* key;
    CHECK(LiteRtGetModelSignature(model, call.signature, &found));
    CHECK(LiteRtGetSignatureKey(found, &key));
    if (strcmp(key, signature) == 0) break;
  }
  if (call.signature == count) {
    fprintf(stderr, "error: %s has no signature %s\n", path, signature);
    exit(1);
  }
  CHECK(LiteRtGetNumSignatureInputs(found, &call.inputs));
  CHECK(LiteRtGetNumSignatureOutputs(found, &call.outputs));
  if (call.inputs > MAX_TENSORS || call.outputs > MAX_TENSORS) {
    fprintf(stderr, "error: %s has more than %d tensors\n", path, MAX_TENSORS);
    exit(1);
  }
  Handle tensor, needs;
  TensorType type;
  for (size_t i = 0; i < call.inputs; ++i) {
    CHECK(LiteRtGetSignatureInputName(found, i, &call.input_names[i]));
    CHECK(LiteRtGetSignatureInputTensorByIndex(found, i, &tensor));
    CHECK(LiteRtGetRankedTensorType(tensor, &type));
    CHECK(LiteRtGetCompiledModelInputBufferRequirements(call.compiled, call.signature, i, &needs));
    CHECK(LiteRtCreateManagedTensorBufferFromRequirements(environment, &type, needs,
                                                          &call.input_buffers[i]));
  }
  // Post-processing decides on the shapes of its outputs when it is prepared: the file lacks them.
  Layout layouts[MAX_TENSORS];
  CHECK(LiteRtGetCompiledModelOutputTensorLayouts(call.compiled, call.signature, call.outputs,
                                                  layouts, true));
  for (size_t i = 0; i < call.outputs; ++i) {
    CHECK(LiteRtGetSignatureOutputName(found, i, &call.output_names[i]));
    CHECK(LiteRtGetSignatureOutputTensorByIndex(found, i, &tensor));
    CHECK(LiteRtGetRankedTensorType(tensor, &type));
    type.layout = layouts[i];
    CHECK(LiteRtGetCompiledModelOutputBufferRequirements(call.compiled, call.signature, i, &needs));
    CHECK(LiteRtCreateManagedTensorBufferFromRequirements(environment, &type, needs,
                                                          &call.output_buffers[i]));
  }
  return call;
}

static void run(Call* call) {
  CHECK(LiteRtRunCompiledModel(call->compiled, call->signature, call->inputs, call->input_buffers,
                               call->outputs, call->output_buffers));
}

// ---- The interleaved detector.

static int8_t stored[256];  // of a pixel

static void make_table(void) {
  for (int pixel = 0; pixel < 256; ++pixel) {
    const float value = rintf((pixel - MEAN) / STD / SCALE) + ZERO_POINT;  // rounds half to even
    stored[pixel] = (int8_t)fminf(fmaxf(value, -128.0f), 127.0f);
  }
}

// The mean of each block of factor × factor pixels, rounded half up, as int8. f0 takes factor 1.
static void prepare(const uint8_t* frame, int factor, Handle image) {
  void* memory;
  CHECK(LiteRtLockTensorBuffer(image, &memory, LOCK_WRITE));
  int8_t* next = memory;
  const int area = factor * factor;
  for (int y = 0; y < F0_HEIGHT; y += factor) {
    for (int x = 0; x < F0_WIDTH; x += factor) {
      for (int channel = 0; channel < 3; ++channel) {
        int sum = area / 2;
        for (int i = 0; i < area; ++i) {
          sum += frame[((y + i / factor) * F0_WIDTH + x + i % factor) * 3 + channel];
        }
        *next++ = stored[sum / area];
      }
    }
  }
  CHECK(LiteRtUnlockTensorBuffer(image));
}

static void fill(Handle buffer, int value) {
  void* memory;
  size_t bytes;
  CHECK(LiteRtGetTensorBufferPackedSize(buffer, &bytes));
  CHECK(LiteRtLockTensorBuffer(buffer, &memory, LOCK_WRITE));
  memset(memory, value, bytes);
  CHECK(LiteRtUnlockTensorBuffer(buffer));
}

static void write_out(Handle buffer) {
  void* memory;
  size_t bytes;
  CHECK(LiteRtGetTensorBufferPackedSize(buffer, &bytes));
  CHECK(LiteRtLockTensorBuffer(buffer, &memory, LOCK_READ));
  fwrite(memory, 1, bytes, stdout);
  CHECK(LiteRtUnlockTensorBuffer(buffer));
}

static void swap(Handle* a, Handle* b) {
  const Handle other = *a;
  *a = *b;
  *b = other;
}

typedef struct {
  Call f0, f1, step, post;
} Detector;

static void open_detector(Detector* d, const char* bundle) {
  Handle environment;
  CHECK(LiteRtCreateEnvironment(0, NULL, &environment));
  d->f0 = load(environment, bundle, "f0.tflite", "serving_default");
  d->f1 = load(environment, bundle, "f1.tflite", "serving_default");
  d->step = load(environment, bundle, "memory.tflite", "step");
  d->post = load(environment, bundle, "post.tflite", "serving_default");
  // The edges: both ends are one buffer, so nothing is copied.
  *output(&d->f0, "features") = *output(&d->f1, "features") = *input(&d->step, "features");
  *input(&d->post, "box_encodings") = *output(&d->step, "box_encodings");
  *input(&d->post, "class_logits") = *output(&d->step, "class_logits");
  make_table();
}

// Frame number `index` of a video, from 0. The detections are then in the outputs of `post`.
static void detect(Detector* d, const uint8_t* frame, long index) {
  if (index == 0) {
    for (int i = 0; i < STATES; ++i) fill(*input(&d->step, STATE[i].input), STATE[i].initial);
  }
  const bool large = index % (TAU + 1) == 0;
  Call* extractor = large ? &d->f0 : &d->f1;
  prepare(frame, large ? 1 : FACTOR, *input(extractor, "image"));
  run(extractor);
  run(&d->step);
  run(&d->post);
  if (large) {  // updates_state: f0's frames write the state, those of f1 leave it alone
    for (int i = 0; i < STATES; ++i) {
      swap(input(&d->step, STATE[i].input), output(&d->step, STATE[i].output));
    }
  }
}

int main(int argc, char** argv) {
  if (argc != 2) {
    fprintf(stderr, "usage: frame BUNDLE < frames.rgb > outputs.bin\n");
    return 2;
  }
  Detector detector;
  open_detector(&detector, argv[1]);
  static uint8_t frame[F0_HEIGHT * F0_WIDTH * 3];
  for (long index = 0; fread(frame, sizeof(frame), 1, stdin) == 1; ++index) {
    detect(&detector, frame, index);
    write_out(*output(&detector.step, "box_encodings"));
    write_out(*output(&detector.step, "class_logits"));
    const char* found[] = {"boxes", "scores", "classes", "count"};
    for (int i = 0; i < 4; ++i) write_out(*output(&detector.post, found[i]));
  }
  return 0;
}
