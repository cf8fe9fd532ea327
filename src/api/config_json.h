#pragma once

// The one place where a Config is read from what a user wrote: a JSON document, or the
// "key=value,key" lists of command-line flags. Both forms have the same field names, types and
// checks, and an error names the field by its path ("disks[1].cache") and what it takes.
//
//   Config config;
//   if (auto r = ApplyJson(text, "vm.json", config); !r) ...
//   if (auto r = ApplyFlag("disk", "path=a.img,readonly", config); !r) ...     // after the file:
//   flags win
//
// A scalar flag replaces what the file said. A list flag (disk, net) adds to the list, or replaces
// the entry with the same id. Threads: pure functions.

#include <string>
#include <string_view>
#include <vector>

#include "src/base/failure.h"
#include "src/machine/config.h"

namespace postern::api {

// `source` names the document in messages.
[[nodiscard]] Outcome<void> ApplyJson(std::string_view text, std::string_view source,
                                      Config& config);
[[nodiscard]] Outcome<void> ApplyJsonFile(const std::string& path, Config& config);

// A flag that stands for one field of the document. `name` is the flag without dashes.
[[nodiscard]] Outcome<void> ApplyFlag(std::string_view name, std::string_view value,
                                      Config& config);

// A device as `postern ctl add-device` takes it: its kind and the words of that flag,
// "disk,path=a.img,readonly".
[[nodiscard]] Outcome<DeviceConfig> ParseDevice(std::string_view spec);

// The keys a structured flag takes, for --help: "path, readonly, direct, ...".
[[nodiscard]] std::string FlagKeys(std::string_view name);

}  // namespace postern::api
