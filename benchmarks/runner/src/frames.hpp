// Recorded frames, and how they become what a graph takes.
#pragma once

#include "plan.hpp"

// The recorded frames, [count, height, width, 3] RGB bytes, again and again.
class Frames {
 public:
  explicit Frames(const Plan& plan);

  const unsigned char* operator[](long frame) const {
    return &pixels_[frame % count_ * (pixels_.size() / count_)];
  }
  size_t height() const { return height_; }
  size_t width() const { return width_; }

 private:
  size_t count_, height_, width_;
  litert::Bytes pixels_;
};

// memvid_tf/runtime/preprocess.py: stores a frame, or its factor × factor box mean rounded half up,
// as a graph's input tensor. Resizing is not done here: frames are recorded at the size they need.
class Images {
 public:
  // The plan's line `image NAME FACTOR TABLE_FILE`; the table holds the stored value of each pixel.
  Images(const Plan& plan, const std::string& name, const Frames& frames);

  void Store(long frame, const litert::Tensor& image) const;

 private:
  void StoreRow(const unsigned char* pixels, unsigned char* stored) const;

  const Frames& frames_;
  size_t factor_, element_;
  bool flips_ = false;  // the stored value is the pixel with its top bit flipped
  litert::Bytes table_;
};
