// Patchwork on a sequence of frames: the same copying and calls as memvid_tf/runtime/patchwork.py,
// whose manifest (window_spec.py) says what they mean. Actions and tables come with the plan.
//
// The body reads and writes the maps of a window, the tail those of the full frame, in shared
// memory where they are the same.

#include <algorithm>
#include <cstring>

#include "sequence.hpp"

using litert::Bytes;
using litert::Call;
using litert::Error;
using litert::NowUs;
using litert::Tensor;

namespace {

constexpr long kMostSlices = 64, kMostChunks = 1 << 24;

std::vector<int32_t> ReadTable(const std::string& path) {
  const Bytes bytes = ReadFile(path);
  std::vector<int32_t> table(bytes.size() / sizeof(int32_t));
  memcpy(table.data(), bytes.data(), table.size() * sizeof(int32_t));
  return table;
}

void CheckAll(const std::vector<int32_t>& table, long low, long high, const std::string& path) {
  for (const int32_t value : table) {
    if (value >= low && value <= high) continue;
    throw Error(path + ": holds " + std::to_string(value) + ", wanted " + std::to_string(low) +
                " to " + std::to_string(high));
  }
}

// Chunks that are copied in one go: consecutive on both sides.
struct Block {
  size_t kept, flat, chunks;
};

// The blocks of a row of a table, which says for each flat chunk which kept one it is.
std::vector<Block> Blocks(const int32_t* row, size_t count) {
  std::vector<Block> blocks;
  for (size_t i = 0; i < count; ++i) {
    const size_t kept = row[i];
    if (!blocks.empty() && blocks.back().kept + blocks.back().chunks == kept) {
      ++blocks.back().chunks;
    } else {
      blocks.push_back({kept, i, 1});
    }
  }
  return blocks;
}

// A map of the full frame, [H, W, pixel bytes], and the body's part of it.
struct Map {
  Tensor whole, part;
  size_t pixel, row_bytes, part_rows, part_bytes, tile_rows, tile_columns;

  void Write(size_t top, size_t left) const {
    part.Map(false, [&](unsigned char* data) {
      whole.Map(true, [&](unsigned char* map) {
        map += top * tile_rows * row_bytes + left * tile_columns * pixel;
        for (size_t y = 0; y < part_rows; ++y) {
          memcpy(map + y * row_bytes, data + y * part_bytes, part_bytes);
        }
      });
    });
  }
};

class Patchwork : public Sequence {
 public:
  explicit Patchwork(const Plan& plan)
      : Sequence(plan),
        images_(plan, "full", frames_),
        calls_(plan, threads_),
        full_(calls_["full"]),
        tail_(calls_["tail"]),
        actions_(ReadTable(plan.one("actions").at(0))) {
    const auto& words = plan.one("windows");  // SLICES ADJACENT CHUNK_BYTES MEMORY_CHUNKS ZERO_BYTE
    slices_ = Whole(words.at(0), "slices", 1, kMostSlices);
    adjacent_ = Whole(words.at(1), "adjacent", 1, slices_);
    chunk_ = Whole(words.at(2), "chunk", 1, kMostChunks);
    positions_ = slices_ - adjacent_ + 1;
    const size_t memory = Whole(words.at(3), "memory", 1, kMostChunks);
    for (const auto& map : plan.all("map")) tail_.BindInput(map.at(0), full_.output(map.at(0)));
    for (const auto& line : plan.all("call")) {
      if (line.at(0) == "post") post_ = std::make_unique<Post>(calls_["post"], tail_);
    }
    if (full_.output("strips").bytes != memory * chunk_) {
      throw Error("plan: " + words.at(3) + " chunks of " + words.at(2) + " bytes are not the strips");
    }
    // What lies outside the frame is one chunk behind the others, and zero.
    kept_.resize((memory + 1) * chunk_);
    memset(&kept_[memory * chunk_], Whole(words.at(4), "zero", -128, 127), chunk_);
    ages_.resize(slices_ * slices_);
    CheckAll(actions_, -1, positions_ * positions_ - 1, plan.one("actions").at(0));
    Whole(plan.one("length").at(0), "length", 1, actions_.size());  // an action for each frame
    // Frames that are all seen whole need nothing of a window.
    if (std::any_of(actions_.begin(), actions_.end(), [](int32_t a) { return a >= 0; })) {
      PrepareWindows(plan);
    }
  }

 private:
  void PrepareWindows(const Plan& plan) {
    window_ = &calls_["window"];
    const size_t halo = window_->input("halo").bytes / chunk_;
    const size_t own = window_->output("own").bytes / chunk_;
    const auto& tables = plan.one("tables");  // READ_FILE PLACES_FILE
    const auto read = ReadTable(tables.at(0)), places = ReadTable(tables.at(1));
    const size_t count = positions_ * positions_;
    if (read.size() != count * halo || places.size() != count * own) {
      throw Error("plan: " + tables.at(0) + " and " + tables.at(1) + " do not fit the graph");
    }
    const long memory = kept_.size() / chunk_ - 1;
    CheckAll(read, 0, memory, tables.at(0));
    CheckAll(places, 0, memory - 1, tables.at(1));
    for (size_t action = 0; action < count; ++action) {
      read_.push_back(Blocks(&read[action * halo], halo));
      places_.push_back(Blocks(&places[action * own], own));
    }
    const auto& side = plan.one("window_image");  // HEIGHT WIDTH ABOVE LEFT ZERO_BYTE
    window_height_ = Whole(side.at(0), "height", 1, kMostPixels);
    window_width_ = Whole(side.at(1), "width", 1, kMostPixels);
    above_ = Whole(side.at(2), "above", 0, window_height_ - 1);
    left_ = Whole(side.at(3), "left", 0, window_width_ - 1);
    image_zero_ = Whole(side.at(4), "zero", -128, 127);
    pixel_ = full_.input("image").bytes / (frames_.height() * frames_.width());
    if (window_->input("image").bytes != window_height_ * window_width_ * pixel_) {
      throw Error("plan: a window of " + side.at(0) + " x " + side.at(1) +
                  " pixels does not fit the graph");
    }
    for (const auto& line : plan.all("map")) {  // NAME HEIGHT WIDTH
      const size_t height = Whole(line.at(1), "height", 1, kMostPixels);
      const size_t width = Whole(line.at(2), "width", 1, kMostPixels);
      Map map{tail_.input(line.at(0)), window_->output(line.at(0)), 0, 0, 0, 0, 0, 0};
      map.pixel = map.whole.bytes / (height * width);
      map.row_bytes = width * map.pixel;
      map.tile_rows = height / slices_;
      map.tile_columns = width / slices_;
      map.part_rows = map.tile_rows * adjacent_;
      map.part_bytes = map.tile_columns * adjacent_ * map.pixel;
      if (map.part.bytes != map.part_rows * map.part_bytes) {
        throw Error("plan: map " + line.at(0) + " does not fit the graph");
      }
      maps_.push_back(map);
    }
  }

  Parts Frame(long frame) override {
    Parts parts;
    Prepare(images_, frame, full_.input("image"), parts);
    const int32_t action = actions_.at(frame);
    parts.whole = action < 0;
    if (parts.whole) {
      parts.extract = full_.Run();
      full_.output("strips").Map(false, [&](unsigned char* strips) {
        memcpy(kept_.data(), strips, kept_.size() - chunk_);
      });
      std::fill(ages_.begin(), ages_.end(), 0);
    } else {
      const size_t top = action / positions_, left = action % positions_;
      Crop(top, left);
      Gather(read_.at(action));
      parts.extract = window_->Run();
      Scatter(places_.at(action));
      for (const Map& map : maps_) map.Write(top, left);
      for (auto& age : ages_) ++age;
      for (size_t y = 0; y < adjacent_; ++y) {
        std::fill_n(&ages_[(top + y) * slices_ + left], adjacent_, 0);
      }
    }
    parts.memory = tail_.Run();
    if (post_) parts.post = (*post_)();
    parts.age = *std::max_element(ages_.begin(), ages_.end());
    return parts;
  }

  // The window of the stored frame, with what lies around it.
  void Crop(size_t top, size_t left) {
    const long height = frames_.height(), width = frames_.width();
    const long y0 = top * height / slices_ - above_, x0 = left * width / slices_ - left_;
    const long first = std::max(0l, -x0), last = std::min<long>(window_width_, width - x0);
    full_.input("image").Map(false, [&](unsigned char* image) {
      window_->input("image").Map(true, [&](unsigned char* out) {
        for (long y = 0; y < window_height_; ++y, out += window_width_ * pixel_) {
          if (y0 + y < 0 || y0 + y >= height) {
            memset(out, image_zero_, window_width_ * pixel_);
            continue;
          }
          memset(out, image_zero_, first * pixel_);
          memcpy(out + first * pixel_, image + ((y0 + y) * width + x0 + first) * pixel_,
                 (last - first) * pixel_);
          memset(out + last * pixel_, image_zero_, (window_width_ - last) * pixel_);
        }
      });
    });
  }

  void Gather(const std::vector<Block>& blocks) {
    window_->input("halo").Map(true, [&](unsigned char* halo) {
      for (const Block& b : blocks) {
        memcpy(halo + b.flat * chunk_, &kept_[b.kept * chunk_], b.chunks * chunk_);
      }
    });
  }

  void Scatter(const std::vector<Block>& blocks) {
    window_->output("own").Map(false, [&](unsigned char* own) {
      for (const Block& b : blocks) {
        memcpy(&kept_[b.kept * chunk_], own + b.flat * chunk_, b.chunks * chunk_);
      }
    });
  }

  void Record(Bytes& recorded) override {
    const auto append = [&](const Bytes& data) {
      recorded.insert(recorded.end(), data.begin(), data.end());
    };
    for (const auto& line : plan_.all("output")) append(tail_.output(line.at(0)).Read());
    if (post_) {
      for (const Bytes& found : post_->found()) append(found);
    }
  }

  const Images images_;
  Calls calls_;
  Call &full_, &tail_;
  Call* window_ = nullptr;
  std::unique_ptr<Post> post_;
  std::vector<Map> maps_;
  const std::vector<int32_t> actions_;  // by frame; -1 sees the frame whole
  size_t slices_, adjacent_, positions_, chunk_, pixel_ = 0;
  long window_height_ = 0, window_width_ = 0, above_ = 0, left_ = 0;
  int image_zero_ = 0;  // the byte of which the stored 0 is made
  Bytes kept_;
  std::vector<std::vector<Block>> read_, places_;
  std::vector<int32_t> ages_;
};

}  // namespace

Json RunWindows(const Plan& plan) { return Patchwork(plan).Run(); }
