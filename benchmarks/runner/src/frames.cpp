#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("O3")  // or it makes no vector code
#endif

#include "frames.hpp"

#include <algorithm>
#include <cstring>

using litert::Bytes;
using litert::Error;
using litert::Tensor;

namespace {

constexpr size_t kChannels = 3;

struct Scratch {
  std::vector<uint16_t> sums;
  Bytes blocks;
};

// The box mean of two rows in blocks of 2 × 2, rounded half up; `width` is the result's, and one
// byte behind it is written too. Every block of two columns is summed, also those that straddle two
// results, since compilers make vector code of that; then every second one is kept.
void MeanOfTwoRows(const unsigned char* upper, const unsigned char* lower, size_t width,
                   Scratch& scratch, unsigned char* mean) {
  uint16_t* sums = scratch.sums.data();
  unsigned char* blocks = scratch.blocks.data();
  for (size_t i = 0; i < 2 * width * kChannels; ++i) sums[i] = upper[i] + lower[i];
  for (size_t i = 0; i < (2 * width - 1) * kChannels; ++i) {
    blocks[i] = static_cast<uint16_t>(sums[i] + sums[i + kChannels] + 2) >> 2;
  }
  for (size_t x = 0; x < width; ++x) memcpy(mean + x * kChannels, blocks + 2 * x * kChannels, 4);
}

// The same for blocks of any size.
void MeanOfRows(const unsigned char* first, size_t row_bytes, size_t width, size_t factor,
                unsigned char* mean) {
  const size_t area = factor * factor;
  for (size_t x = 0; x < width; ++x) {
    for (size_t c = 0; c < kChannels; ++c) {
      size_t sum = area / 2;
      for (size_t i = 0; i < area; ++i) {
        sum += first[i / factor * row_bytes + (x * factor + i % factor) * kChannels + c];
      }
      mean[x * kChannels + c] = sum / area;
    }
  }
}

}  // namespace

Frames::Frames(const Plan& plan) {
  const auto& words = plan.one("frames");  // COUNT HEIGHT WIDTH FILE
  count_ = Whole(words.at(0), "frames", 1, kMostRuns);
  height_ = Whole(words.at(1), "height", 1, kMostPixels);
  width_ = Whole(words.at(2), "width", 1, kMostPixels);
  pixels_ = ReadFile(words.at(3), count_ * height_ * width_ * kChannels);
}

Images::Images(const Plan& plan, const std::string& name, const Frames& frames)
    : frames_(frames) {
  for (const auto& line : plan.all("image")) {
    if (line.at(0) != name) continue;
    factor_ = Whole(line.at(1), "factor", 1, std::min(frames.height(), frames.width()));
    table_ = ReadFile(line.at(2));
  }
  if (table_.empty()) throw Error("plan: no line 'image " + name + "'");
  element_ = table_.size() / 256;
  flips_ = element_ == 1;
  for (int pixel = 0; pixel < 256; ++pixel) flips_ = flips_ && table_[pixel] == (pixel ^ 0x80);
}

void Images::StoreRow(const unsigned char* pixels, unsigned char* stored) const {
  const size_t numbers = frames_.width() / factor_ * kChannels;
  if (flips_) {
    for (size_t i = 0; i < numbers; ++i) stored[i] = pixels[i] ^ 0x80;
    return;
  }
  for (size_t i = 0; i < numbers; ++i) {
    memcpy(stored + i * element_, &table_[pixels[i] * element_], element_);
  }
}

void Images::Store(long frame, const Tensor& image) const {
  const size_t height = frames_.height() / factor_, width = frames_.width() / factor_;
  const size_t row_bytes = frames_.width() * kChannels;
  const size_t stored_bytes = width * kChannels * element_;
  if (image.bytes != height * stored_bytes) {
    throw Error("plan: " + image.name + " has " + std::to_string(image.bytes) + " bytes, wanted " +
                std::to_string(height * stored_bytes));
  }
  const unsigned char* pixels = frames_[frame];
  Bytes mean(width * kChannels + 1);
  Scratch scratch{std::vector<uint16_t>(row_bytes), Bytes(row_bytes)};
  image.Map(true, [&](unsigned char* stored) {
    for (size_t y = 0; y < height; ++y, pixels += factor_ * row_bytes, stored += stored_bytes) {
      if (factor_ == 1) {
        StoreRow(pixels, stored);
        continue;
      }
      if (factor_ == 2) {
        MeanOfTwoRows(pixels, pixels + row_bytes, width, scratch, mean.data());
      } else {
        MeanOfRows(pixels, row_bytes, width, factor_, mean.data());
      }
      StoreRow(mean.data(), stored);
    }
  });
}
