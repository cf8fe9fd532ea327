#pragma once

// PolledSource: what a queue needs of the polled portal pages it reads, so that an Engine runs with
// other pages in tests. PolledPages makes them of siov::PolledPage, whose header has the rules.
//
// Ownership: the queue owns it. Threads: under the queue's lock, but `host`, which is constant; the
// guest stores at any time.

#include <cstdint>
#include <functional>
#include <memory>

#include "devices/siov/core/backend.h"
#include "src/base/result.h"
#include "src/bus/platform.h"

namespace postern::dsa {

// Slots of a page: the size of a queue that is polled is below this.
constexpr std::uint32_t kPageSlots = 64;
// Of a queue: page 0 and page 1 (the specification's unlimited and limited portal).
constexpr std::uint32_t kPolledPages = 2;

class PolledSource {
 public:
  using Take = std::function<void(const siov::Descriptor&)>;

  virtual ~PolledSource() = default;
  // Hands over what is there in the order it was stored, at most kPageSlots a page. How many.
  virtual std::uint32_t Poll(const Take& take) = 0;
  // The same with a look at every slot.
  virtual std::uint32_t Scan(const Take& take) = 0;
  // Empties all slots; the next descriptor may come in any.
  virtual void Forget() = 0;
  // All was as the pages' rules say since Forget.
  [[nodiscard]] virtual bool trusted() const = 0;
  // Descriptors known to be lost, since it was made.
  [[nodiscard]] virtual std::uint64_t overwritten() const = 0;
  [[nodiscard]] virtual bus::HostPages host(std::uint32_t page) const = 0;
};

using PolledFactory = std::function<Result<std::unique_ptr<PolledSource>>(std::uint32_t pages)>;

}  // namespace postern::dsa
