#pragma once

#include <string_view>

namespace postern::cli {

constexpr std::string_view kVersion = "0.1.0";

}  // namespace postern::cli
