#include "plan.hpp"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sstream>

using litert::Bytes;
using litert::Error;

namespace {

constexpr long kMostThreads = 128;
constexpr size_t kMostBytes = 64 << 20;  // of a file whose size the plan does not give

// An open file, which must be a regular one: nothing else has a size, and a pipe has no end.
class Input {
 public:
  explicit Input(const std::string& path) : path_(path), file_(open(path.c_str(), kFlags)) {
    struct stat found;
    if (file_ < 0 || fstat(file_, &found) != 0) Fail(strerror(errno));
    if (!S_ISREG(found.st_mode)) Fail("not a file");
    bytes_ = found.st_size;
  }
  Input(const Input&) = delete;
  Input& operator=(const Input&) = delete;
  ~Input() { Close(); }

  size_t bytes() const { return bytes_; }

  Bytes Read() {
    Bytes data(bytes_);
    for (size_t done = 0; done < bytes_;) {
      const ssize_t got = read(file_, data.data() + done, bytes_ - done);
      if (got < 0 && errno == EINTR) continue;
      if (got <= 0) Fail(got < 0 ? strerror(errno) : "was cut short while it was read");
      done += got;
    }
    return data;
  }

  [[noreturn]] void Fail(const std::string& why) {
    Close();
    throw Error(path_ + ": " + why);
  }

 private:
  static constexpr int kFlags = O_RDONLY | O_CLOEXEC | O_NONBLOCK;

  void Close() {
    if (file_ >= 0) close(file_);
    file_ = -1;
  }

  const std::string path_;
  int file_;
  size_t bytes_ = 0;
};

template <typename Number>
[[noreturn]] void Refuse(const std::string& word, const std::string& what, const char* kind,
                         Number low, Number high) {
  std::ostringstream text;
  text << "plan: " << what << " is '" << word.substr(0, 40) << "', wanted a " << kind << " from "
       << low << " to " << high;
  throw Error(text.str());
}

}  // namespace

Plan::Plan(const std::string& path) {
  const Bytes content = ReadFile(path);
  std::istringstream file(std::string(content.begin(), content.end()));
  std::string text;
  bool first = true;
  while (std::getline(file, text)) {
    std::istringstream stream(text);
    Line words;
    for (std::string word; stream >> word;) words.push_back(word);
    if (words.empty()) continue;
    if (first && words != Line{"memvid_plan", "1"}) {
      throw Error(path + ": the first line is not 'memvid_plan 1'");
    }
    first = false;
    const std::string key = words.front();
    words.erase(words.begin());
    lines_[key].push_back(words);
  }
  if (all("end").size() != 1) throw Error(path + ": no 'end' line; the plan was cut short");
}

const Plan::Line& Plan::one(const std::string& key) const {
  const auto& found = all(key);
  if (found.size() != 1) {
    throw Error("plan: " + std::to_string(found.size()) + " lines '" + key + "', wanted one");
  }
  return found.front();
}

const std::vector<Plan::Line>& Plan::all(const std::string& key) const {
  static const std::vector<Line> none;
  const auto found = lines_.find(key);
  return found == lines_.end() ? none : found->second;
}

long Whole(const std::string& word, const std::string& what, long low, long high) {
  char* end = nullptr;
  errno = 0;
  const long value = strtol(word.c_str(), &end, 10);
  const bool read = errno == 0 && end != word.c_str() && *end == '\0';
  if (!read || value < low || value > high) Refuse(word, what, "whole number", low, high);
  return value;
}

double Real(const std::string& word, const std::string& what, double low, double high) {
  char* end = nullptr;
  const double value = strtod(word.c_str(), &end);
  const bool read = end != word.c_str() && *end == '\0';
  if (!read || !(value >= low && value <= high)) Refuse(word, what, "number", low, high);
  return value;
}

long Threads(const Plan& plan) {
  return Whole(plan.one("threads").at(0), "threads", 1, kMostThreads);
}

Bytes ReadFile(const std::string& path) {
  Input file(path);
  if (file.bytes() > kMostBytes) {
    file.Fail(std::to_string(file.bytes()) + " bytes, wanted at most " +
              std::to_string(kMostBytes));
  }
  return file.Read();
}

Bytes ReadFile(const std::string& path, size_t bytes) {
  Input file(path);
  if (file.bytes() != bytes) {
    file.Fail(std::to_string(file.bytes()) + " bytes, wanted " + std::to_string(bytes));
  }
  return file.Read();
}

void WriteFile(const std::string& path, const void* data, size_t bytes) {
  const std::string temporary = path + ".part";
  FILE* file = fopen(temporary.c_str(), "wb");
  if (file == nullptr) throw Error(temporary + ": " + strerror(errno));
  const bool written = fwrite(data, 1, bytes, file) == bytes && fflush(file) == 0 &&
                       fsync(fileno(file)) == 0;
  const int reason = errno;
  if (fclose(file) != 0 || !written) {
    unlink(temporary.c_str());
    throw Error(temporary + ": " + strerror(reason));
  }
  if (rename(temporary.c_str(), path.c_str()) == 0) return;
  const int refused = errno;
  unlink(temporary.c_str());
  throw Error(path + ": " + strerror(refused));
}

namespace {

std::string Quote(const std::string& text) {
  std::string quoted = "\"";
  for (const unsigned char c : text) {
    if (c == '"' || c == '\\') {
      quoted += {'\\', static_cast<char>(c)};
    } else if (c < 0x20 || c >= 0x7f) {
      char escape[8];
      snprintf(escape, sizeof escape, "\\u%04x", c);
      quoted += escape;
    } else {
      quoted += static_cast<char>(c);
    }
  }
  return quoted + "\"";
}

std::string Decimal(double value) {
  if (!std::isfinite(value)) return "null";
  char text[32];
  snprintf(text, sizeof text, value == std::floor(value) ? "%.0f" : "%.3f", value);
  return text;
}

}  // namespace

Json& Json::Raw(const std::string& key, const std::string& value) {
  text_ += (text_.empty() ? "" : ",") + Quote(key) + ":" + value;
  return *this;
}

Json& Json::Text(const std::string& key, const std::string& value) {
  return Raw(key, Quote(value));
}

Json& Json::Number(const std::string& key, double value) { return Raw(key, Decimal(value)); }

Json& Json::Flag(const std::string& key, bool value) { return Raw(key, value ? "true" : "false"); }

Json& Json::Numbers(const std::string& key, const std::vector<double>& values) {
  std::string list;
  for (const double value : values) list += (list.empty() ? "" : ",") + Decimal(value);
  return Raw(key, "[" + list + "]");
}

Json& Json::Objects(const std::string& key, const std::vector<Json>& values) {
  std::string list;
  for (const Json& value : values) list += (list.empty() ? "" : ",") + value.str();
  return Raw(key, "[" + list + "]");
}
