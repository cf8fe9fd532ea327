#pragma once

// DeviceInfo: one device of a machine, as listings show it. Threads: a value.

#include <cstdint>
#include <string>

namespace postern {

struct DeviceInfo {
  std::string id;
  std::string detail;      // "a.img, read-only"; may be empty
  std::uint16_t slot = 0;  // the hot-plug slot it is in; 0: it was there from the start
  bool leaving = false;    // the guest was asked to release it
};

}  // namespace postern
