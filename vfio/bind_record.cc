// The state file of a bound device.

#include <algorithm>
#include <array>
#include <utility>

#include <fmt/format.h>

#include "vfio/bind.h"
#include "vfio/bind_internal.h"

namespace postern::vfio {

bool internal::IsFileName(std::string_view text) {
  return !text.empty() && text.size() <= 255 && text != "." && text != ".." &&
         std::all_of(text.begin(), text.end(), [](char c) {
           return c != '/' && static_cast<unsigned char>(c) >= 0x20 && c != 0x7f;
         });
}

std::string FormatBindRecord(const BindRecord& record) {
  return fmt::format("driver={}\nmodule={}\ndriver_override={}\nbound={}\n", record.driver,
                     record.module, record.driver_override, record.bound);
}

Result<BindRecord> ParseBindRecord(std::string_view text) {
  BindRecord record;
  struct Field {
    std::string_view key;
    std::string* value;
    bool found = false;
  };
  std::array<Field, 4> fields{{{"driver", &record.driver},
                               {"module", &record.module},
                               {"driver_override", &record.driver_override},
                               {"bound", &record.bound}}};
  while (!text.empty()) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    const std::size_t equals = line.find('=');
    if (equals == std::string_view::npos) return Err(Errc::kBadFormat, "bind state");
    const auto field = std::find_if(fields.begin(), fields.end(), [&](const Field& f) {
      return f.key == line.substr(0, equals);
    });
    if (field == fields.end() || field->found) return Err(Errc::kBadFormat, "bind state");
    const std::string_view value = line.substr(equals + 1);
    if (!value.empty() && !internal::IsFileName(value)) return Err(Errc::kBadFormat, "bind state");
    *field->value = value;
    field->found = true;
  }
  const bool whole =
      std::all_of(fields.begin(), fields.end(), [](const Field& f) { return f.found; });
  if (!whole || record.bound.empty()) return Err(Errc::kBadFormat, "bind state");
  return record;
}

}  // namespace postern::vfio
