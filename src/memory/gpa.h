#pragma once

// Gpa: a guest-physical address.

#include "src/base/strong.h"

namespace postern::memory {

using Gpa = StrongAddress<struct GpaTag>;

enum class Access : unsigned char { kRead = 1, kWrite = 2, kReadWrite = 3 };

}  // namespace postern::memory
