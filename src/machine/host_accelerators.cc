#include "src/machine/host_accelerators.h"

#include <algorithm>
#include <utility>

namespace postern {

Outcome<dsa::DsaHost*> HostAccelerators::Get(const VdevConfig& config) {
  const std::string& key = config.host.empty() ? config.socket : config.host;
  const auto known = std::ranges::find(entries_, key, &Entry::key);
  if (known != entries_.end()) return known->host.get();
  Outcome<LentDevice> opened = open_(config);
  if (!opened) return tl::unexpected(opened.error());
  Outcome<std::unique_ptr<dsa::DsaHost>> host = dsa::DsaHost::Create(
      std::move(opened->device), {.name = key, .portals_are_memory = config.host.empty()});
  if (!host) return tl::unexpected(host.error());
  entries_.push_back({.key = key, .memory = std::move(opened->memory), .host = std::move(*host)});
  return entries_.back().host.get();
}

}  // namespace postern
