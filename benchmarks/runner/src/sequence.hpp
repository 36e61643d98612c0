// What the schedules of every system share: frames one after another, at full speed or as a camera
// gives them, with a warm-up, samples and a record of everything that came out.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "frames.hpp"

// Models of one thread: a file that two calls share is compiled once.
class Calls {
 public:
  Calls(const Plan& plan, int threads) : plan_(plan), threads_(threads) {}

  // Whether the plan has a line for a role.
  bool has(const std::string& role) const;
  // The call of the plan's line `call ROLE FILE SIGNATURE`.
  litert::Call& operator[](const std::string& role);

 private:
  const Plan& plan_;
  int threads_;
  std::map<std::string, std::unique_ptr<litert::Model>> models_;
  std::vector<std::unique_ptr<litert::Call>> calls_;
};

inline const char* const kHeads[] = {"box_encodings", "class_logits"};

// The post-processing of a detector, and the detections as a caller reads them.
class Post {
 public:
  Post(litert::Call& call, const litert::Call& heads);

  // Returns the time of the invoke.
  double operator()();
  const std::vector<litert::Bytes>& found() const { return found_; }

 private:
  litert::Call& call_;
  std::vector<litert::Bytes> found_;
};

class Sequence {
 public:
  explicit Sequence(const Plan& plan);
  virtual ~Sequence() = default;

  // Runs the plan's `length` frames.
  Json Run();

 protected:
  // Microseconds of one frame. What is not said to be another part lies between the invokes.
  struct Parts {
    double extract = 0.0;   // f0, f1 or Patchwork's body
    double memory = 0.0;    // the memory's step, or Patchwork's tail
    double post = 0.0;
    double update = 0.0;    // of the memory, where it runs inside the frame
    double policy = 0.0;
    double schedule = 0.0;  // all of deciding, the policy included
    double prepare = 0.0;   // storing the image; not part of the frame's latency
    bool whole = false;     // f0 began, or Patchwork saw the whole frame
    double age = -1.0;      // of the memory, in frames
  };

  // Does all work of one frame.
  virtual Parts Frame(long frame) = 0;
  // Appends what came out of the latest frame.
  virtual void Record(litert::Bytes& recorded) = 0;
  // Forgets samples of the warm-up.
  virtual void Restart() {}
  // Adds what else was measured.
  virtual void Finish(Json&) const {}

  // Stores a frame for a graph; the time of it becomes part of `parts.prepare`.
  void Prepare(const Images& images, long frame, const litert::Tensor& image, Parts& parts) const;

  const Plan& plan_;
  const int threads_;
  const Frames frames_;
};
