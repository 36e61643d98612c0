// The part of the LiteRT C API that the runner uses, found in libLiteRt.so at run time.
//
// The ai-edge-litert wheel ships the library without headers, so the entry points are declared
// here. Tensors are named: the order of a signature's tensors differs between the C API and Python.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

namespace litert {

// What ends the run, as one line for the user.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

using Bytes = std::vector<unsigned char>;

// Opens libLiteRt.so and creates the environment; called once, before any Model.
void Open(const std::string& library);

// Whether the library does what is declared here, as the versions LITERT_RANGE do: it runs a graph
// whose results are known, in a process of its own, since a function that takes other parameters
// crashes. `scratch` is a file that is written for it and removed.
void CheckAbi(const std::string& library, const std::string& scratch);

// A tensor's memory. Copies share it; nothing is freed before the program ends.
struct Tensor {
  std::string name;
  int type = 0;         // LiteRtElementType
  size_t bytes = 0;     // of the packed tensor
  void* buffer = nullptr;  // LiteRtTensorBuffer

  // Bytes of one number. Only float32 and int8 are known.
  size_t element() const;
  void Write(const void* data) const;
  void Read(void* data) const;
  Bytes Read() const;
  // Copies to a tensor of the same size.
  void CopyTo(const Tensor& other) const;
  // Lets `use` work on the memory itself.
  void Map(bool write, const std::function<void(unsigned char*)>& use) const;
};

// Ends the program in one line if it dies of a signal, as LiteRT does of some damaged models.
// Called behind CheckAbi, whose process may die.
void NameDeaths();
// The file of the newest model, for that line.
extern char newest_model[512];

constexpr int kFloat32 = 1;
constexpr int kInt8 = 9;

// One .tflite file compiled for XNNPACK. Serves one thread at a time.
class Model {
 public:
  Model(const std::string& file, int threads, bool profile);

  bool fully_accelerated() const;
  void StartProfile() const;
  // The table of operators that the runtime prints, since StartProfile.
  std::string StopProfile() const;

 private:
  friend class Call;
  std::string file_;
  void* model_ = nullptr;
  void* compiled_ = nullptr;
};

// One signature of a model with memory of its own. An empty name takes the only one.
class Call {
 public:
  Call(const Model& model, const std::string& signature);

  // Lets a tensor live where `other` does: what one graph writes, the next one reads uncopied.
  void BindInput(const std::string& name, const Tensor& other);
  void BindOutput(const std::string& name, const Tensor& other);
  // Further memory that can be bound as this output.
  Tensor Another(const std::string& output) const;

  const Tensor& input(const std::string& name) const { return Find(inputs_, name); }
  const Tensor& output(const std::string& name) const { return Find(outputs_, name); }
  const std::vector<Tensor>& inputs() const { return inputs_; }
  const std::vector<Tensor>& outputs() const { return outputs_; }

  // Runs the graph; returns the wall time in microseconds.
  double Run() const;

 private:
  size_t Index(const std::vector<Tensor>& tensors, const std::string& name) const;
  const Tensor& Find(const std::vector<Tensor>& tensors, const std::string& name) const {
    return tensors[Index(tensors, name)];
  }
  void Bind(std::vector<Tensor>& tensors, std::vector<void*>& buffers, const std::string& name,
            const Tensor& other);
  void Describe(void* signature);

  std::string where_;
  void* compiled_;
  size_t index_ = 0;
  std::vector<Tensor> inputs_, outputs_;
  std::vector<std::function<void*()>> new_output_;  // by output: creates its memory
  mutable std::vector<void*> input_buffers_, output_buffers_;
};

// Microseconds of the monotonic clock.
double NowUs();

}  // namespace litert
