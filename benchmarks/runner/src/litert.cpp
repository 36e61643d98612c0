#include "litert.hpp"

#include <dlfcn.h>
#include <time.h>

#include <cstdlib>
#include <cstring>

namespace litert {
namespace {

using Status = int;  // LiteRtStatus; 0 is success
using Handle = void*;

// LiteRtRankedTensorType of ai-edge-litert 2.x.
struct Layout {
  unsigned rank : 7;
  bool has_strides : 1;
  int32_t dimensions[8];
  uint32_t strides[8];
};
struct RankedTensorType {
  int element_type;
  Layout layout;
};
static_assert(sizeof(RankedTensorType) == 72, "layout of LiteRtRankedTensorType");

constexpr int kCpu = 1;  // kLiteRtHwAcceleratorCpu
constexpr int kLockRead = 0, kLockWrite = 1;

// X(name, parameters): Status LiteRt<name>(parameters).
#define LITERT_FUNCTIONS(X)                                                                  \
  X(CreateEnvironment, (int, const void*, Handle*))                                          \
  X(CreateModelFromFile, (Handle, const char*, Handle*))                                     \
  X(CreateOptions, (Handle*))                                                                \
  X(SetOptionsHardwareAccelerators, (Handle, int))                                           \
  X(CreateOpaqueOptions, (const char*, void*, void (*)(void*), Handle*))                     \
  X(AddOpaqueOptions, (Handle, Handle))                                                      \
  X(CreateCompiledModel, (Handle, Handle, Handle, Handle*))                                  \
  X(CompiledModelIsFullyAccelerated, (Handle, bool*))                                        \
  X(CompiledModelGetProfiler, (Handle, Handle*))                                             \
  X(StartProfiler, (Handle))                                                                 \
  X(StopProfiler, (Handle))                                                                  \
  X(GetProfileSummary, (Handle, Handle, const char**))                                       \
  X(GetNumModelSignatures, (Handle, size_t*))                                                \
  X(GetModelSignature, (Handle, size_t, Handle*))                                            \
  X(GetSignatureKey, (Handle, const char**))                                                 \
  X(GetNumSignatureInputs, (Handle, size_t*))                                                \
  X(GetNumSignatureOutputs, (Handle, size_t*))                                               \
  X(GetSignatureInputName, (Handle, size_t, const char**))                                   \
  X(GetSignatureOutputName, (Handle, size_t, const char**))                                  \
  X(GetSignatureInputTensorByIndex, (Handle, size_t, Handle*))                               \
  X(GetSignatureOutputTensorByIndex, (Handle, size_t, Handle*))                              \
  X(GetRankedTensorType, (Handle, RankedTensorType*))                                        \
  X(GetCompiledModelInputBufferRequirements, (Handle, size_t, size_t, Handle*))              \
  X(GetCompiledModelOutputBufferRequirements, (Handle, size_t, size_t, Handle*))             \
  X(GetCompiledModelOutputTensorLayouts, (Handle, size_t, size_t, Layout*, bool))            \
  X(CreateManagedTensorBufferFromRequirements, (Handle, const RankedTensorType*, Handle, Handle*)) \
  X(GetTensorBufferPackedSize, (Handle, size_t*))                                            \
  X(LockTensorBuffer, (Handle, void**, int))                                                 \
  X(UnlockTensorBuffer, (Handle))                                                            \
  X(RunCompiledModel, (Handle, size_t, size_t, Handle*, size_t, Handle*))

// Exported since the first version whose CreateModelFromFile takes an environment, which dlsym
// cannot see.
constexpr char kNewest[] = "LiteRtCreateModelFromFd";

#define DECLARE(name, parameters) Status(*name) parameters = nullptr;
LITERT_FUNCTIONS(DECLARE)
#undef DECLARE

Handle environment = nullptr;

void Check(Status status, const char* what, const std::string& where) {
  if (status == 0) return;
  throw Error(where + ": LiteRt" + what + " failed with status " + std::to_string(status));
}
#define CHECK_LITERT(name, where, ...) Check(name(__VA_ARGS__), #name, where)

void AddOptions(Handle options, const char* id, const std::string& toml, const std::string& where) {
  Handle opaque = nullptr;
  char* text = strdup(toml.c_str());  // freed by LiteRT
  CHECK_LITERT(CreateOpaqueOptions, where, id, text, free, &opaque);
  CHECK_LITERT(AddOpaqueOptions, where, options, opaque);
}

void CheckFits(const Tensor& tensor, const Tensor& other) {
  if (tensor.bytes == other.bytes) return;
  throw Error(tensor.name + " has " + std::to_string(tensor.bytes) + " bytes and " + other.name +
              " " + std::to_string(other.bytes) + "; the plan passes one to the other");
}

}  // namespace

double NowUs() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1e6 + now.tv_nsec * 1e-3;
}

void Open(const std::string& library) {
  void* handle = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) throw Error(std::string("cannot load LiteRT: ") + dlerror());
  const auto find = [&](const char* name) {
    void* symbol = dlsym(handle, name);
    if (symbol == nullptr) {
      throw Error(std::string("LiteRT has no ") + name);
    }
    return symbol;
  };
#define LOAD(name, parameters) \
  name = reinterpret_cast<Status(*) parameters>(find("LiteRt" #name));
  LITERT_FUNCTIONS(LOAD)
#undef LOAD
  find(kNewest);
  CHECK_LITERT(CreateEnvironment, library, 0, nullptr, &environment);
}

size_t Tensor::element() const {
  if (type == kFloat32) return sizeof(float);
  if (type == kInt8) return 1;
  throw Error("tensor " + name + " has element type " + std::to_string(type) +
              ", wanted float32 or int8");
}

void Tensor::Map(bool write, const std::function<void(unsigned char*)>& use) const {
  void* memory = nullptr;
  CHECK_LITERT(LockTensorBuffer, name, buffer, &memory, write ? kLockWrite : kLockRead);
  use(static_cast<unsigned char*>(memory));
  CHECK_LITERT(UnlockTensorBuffer, name, buffer);
}

void Tensor::Write(const void* data) const {
  Map(true, [&](unsigned char* memory) { memcpy(memory, data, bytes); });
}

void Tensor::Read(void* data) const {
  Map(false, [&](unsigned char* memory) { memcpy(data, memory, bytes); });
}

Bytes Tensor::Read() const {
  Bytes data(bytes);
  Read(data.data());
  return data;
}

void Tensor::CopyTo(const Tensor& other) const {
  CheckFits(*this, other);
  Map(false, [&](unsigned char* memory) { other.Write(memory); });
}

Model::Model(const std::string& file, int threads, bool profile) : file_(file) {
  file.copy(newest_model, sizeof newest_model - 1);
  CHECK_LITERT(CreateModelFromFile, file, environment, file.c_str(), &model_);
  Handle options = nullptr;
  CHECK_LITERT(CreateOptions, file, &options);
  CHECK_LITERT(SetOptionsHardwareAccelerators, file, options, kCpu);
  AddOptions(options, "xnnpack", "num_threads = " + std::to_string(threads) + "\n", file);
  if (profile) AddOptions(options, "runtime_options_string", "enable_profiling = true\n", file);
  CHECK_LITERT(CreateCompiledModel, file, environment, model_, options, &compiled_);
}

bool Model::fully_accelerated() const {
  bool full = false;
  CHECK_LITERT(CompiledModelIsFullyAccelerated, file_, compiled_, &full);
  return full;
}

void Model::StartProfile() const {
  Handle profiler = nullptr;
  CHECK_LITERT(CompiledModelGetProfiler, file_, compiled_, &profiler);
  CHECK_LITERT(StartProfiler, file_, profiler);
}

std::string Model::StopProfile() const {
  Handle profiler = nullptr;
  CHECK_LITERT(CompiledModelGetProfiler, file_, compiled_, &profiler);
  CHECK_LITERT(StopProfiler, file_, profiler);
  const char* summary = nullptr;
  CHECK_LITERT(GetProfileSummary, file_, profiler, compiled_, &summary);
  return summary == nullptr ? "" : summary;
}

Call::Call(const Model& model, const std::string& signature)
    : where_(model.file_ + ":" + signature), compiled_(model.compiled_) {
  size_t count = 0;
  CHECK_LITERT(GetNumModelSignatures, where_, model.model_, &count);
  Handle found = nullptr;
  std::string known;
  for (size_t i = 0; i < count && found == nullptr; ++i) {
    Handle candidate = nullptr;
    const char* key = nullptr;
    CHECK_LITERT(GetModelSignature, where_, model.model_, i, &candidate);
    CHECK_LITERT(GetSignatureKey, where_, candidate, &key);
    if (signature == key || (signature.empty() && count == 1)) {
      found = candidate;
      index_ = i;
    }
    known += std::string(" ") + key;
  }
  if (found == nullptr) throw Error(where_ + ": no such signature; the model has" + known);
  Describe(found);
}

void Call::Describe(Handle signature) {
  const auto buffers = [&](auto number, auto name_of, auto tensor_of, auto requirements_of,
                           std::vector<Tensor>& tensors, std::vector<void*>& handles,
                           bool output) {
    size_t size = 0;
    Check(number(signature, &size), "GetNumSignature…", where_);
    // Some operators decide on their shapes when they are prepared; the file says nothing then.
    std::vector<Layout> layouts(size);
    if (output) {
      CHECK_LITERT(GetCompiledModelOutputTensorLayouts, where_, compiled_, index_, size,
                   layouts.data(), true);
    }
    for (size_t i = 0; i < size; ++i) {
      const char* name = nullptr;
      Handle described = nullptr, requirements = nullptr;
      RankedTensorType type;
      Check(name_of(signature, i, &name), "GetSignature…Name", where_);
      Check(tensor_of(signature, i, &described), "GetSignature…TensorByIndex", where_);
      CHECK_LITERT(GetRankedTensorType, where_, described, &type);
      if (output) type.layout = layouts[i];
      Check(requirements_of(compiled_, index_, i, &requirements), "Get…BufferRequirements", where_);
      const auto create = [where = where_, type, requirements]() {
        Handle buffer = nullptr;
        CHECK_LITERT(CreateManagedTensorBufferFromRequirements, where, environment, &type,
                     requirements, &buffer);
        return buffer;
      };
      Tensor tensor;
      tensor.name = name;
      tensor.type = type.element_type;
      tensor.buffer = create();
      CHECK_LITERT(GetTensorBufferPackedSize, where_, tensor.buffer, &tensor.bytes);
      tensors.push_back(tensor);
      handles.push_back(tensor.buffer);
      if (output) new_output_.push_back(create);
    }
  };
  buffers(GetNumSignatureInputs, GetSignatureInputName, GetSignatureInputTensorByIndex,
          GetCompiledModelInputBufferRequirements, inputs_, input_buffers_, false);
  buffers(GetNumSignatureOutputs, GetSignatureOutputName, GetSignatureOutputTensorByIndex,
          GetCompiledModelOutputBufferRequirements, outputs_, output_buffers_, true);
}

size_t Call::Index(const std::vector<Tensor>& tensors, const std::string& name) const {
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (tensors[i].name == name) return i;
  }
  std::string known;
  for (const Tensor& tensor : tensors) known += " " + tensor.name;
  throw Error(where_ + ": no tensor " + name + "; it has" + known);
}

void Call::Bind(std::vector<Tensor>& tensors, std::vector<void*>& buffers, const std::string& name,
                const Tensor& other) {
  const size_t index = Index(tensors, name);
  CheckFits(other, tensors[index]);
  tensors[index].buffer = buffers[index] = other.buffer;
}

void Call::BindInput(const std::string& name, const Tensor& other) {
  Bind(inputs_, input_buffers_, name, other);
}

void Call::BindOutput(const std::string& name, const Tensor& other) {
  Bind(outputs_, output_buffers_, name, other);
}

Tensor Call::Another(const std::string& output) const {
  const size_t index = Index(outputs_, output);
  Tensor tensor = outputs_[index];
  tensor.buffer = new_output_[index]();
  return tensor;
}

double Call::Run() const {
  const double start = NowUs();
  const Status status =
      RunCompiledModel(compiled_, index_, input_buffers_.size(), input_buffers_.data(),
                       output_buffers_.size(), output_buffers_.data());
  const double elapsed = NowUs() - start;
  Check(status, "RunCompiledModel", where_);
  return elapsed;
}

}  // namespace litert
