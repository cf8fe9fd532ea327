// The configuration reader on arbitrary documents and flag values: an answer or a named error,
// never more.

#include "src/api/config_json.h"

#include <cstdlib>
#include <string_view>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
  constexpr const char* kFlags[] = {"memory", "disk", "net",       "vsock", "console",
                                    "serial", "cpus", "transport", "rng",   "io-threads"};
  postern::Config config;
  const std::size_t which = data[0] % (std::size(kFlags) + 1);
  const postern::Outcome<void> result = which == std::size(kFlags)
                                            ? postern::api::ApplyJson(text, "fuzz", config)
                                            : postern::api::ApplyFlag(kFlags[which], text, config);
  if (!result &&
      (result.error().cause.empty() || result.error().kind != postern::Failure::Kind::kConfig))
    std::abort();
  if (result) (void)postern::Validate(config);
  return 0;
}
