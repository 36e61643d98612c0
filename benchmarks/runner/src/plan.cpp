#include "plan.hpp"

#include <errno.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>

using litert::Bytes;
using litert::Error;

Plan::Plan(const std::string& path) {
  std::ifstream file(path);
  if (!file) throw Error(path + ": " + strerror(errno));
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

long Whole(const std::string& word, const std::string& what) {
  char* end = nullptr;
  errno = 0;
  const long value = strtol(word.c_str(), &end, 10);
  if (errno != 0 || end == word.c_str() || *end != '\0') {
    throw Error("plan: " + what + " is '" + word + "', wanted a whole number");
  }
  return value;
}

Bytes ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw Error(path + ": " + strerror(errno));
  Bytes data((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  if (file.bad()) throw Error(path + ": cannot be read");
  return data;
}

Bytes ReadFile(const std::string& path, size_t bytes) {
  Bytes data = ReadFile(path);
  if (data.size() != bytes) {
    throw Error(path + ": " + std::to_string(data.size()) + " bytes, wanted " +
                std::to_string(bytes));
  }
  return data;
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
  if (rename(temporary.c_str(), path.c_str()) != 0) throw Error(path + ": " + strerror(errno));
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
