#include "devices/siov/engine/polled_pages.h"

#include <memory>
#include <utility>

#include "devices/siov/core/polled_page.h"
#include "src/base/fd.h"

namespace postern::dsa {
namespace {

static_assert(siov::PolledPage::kSlots == kPageSlots);
static_assert(std::uint64_t{kPolledPages} * siov::PolledPage::kPageSize <= kPolledStride);

class PageSource final : public PolledSource {
 public:
  explicit PageSource(siov::PolledPage page) : page_(std::move(page)) {}
  std::uint32_t Poll(const Take& take) override { return page_.Poll(take); }
  std::uint32_t Scan(const Take& take) override { return page_.Scan(take); }
  void Forget() override { page_.Forget(); }
  [[nodiscard]] bool trusted() const override { return page_.trusted(); }
  [[nodiscard]] std::uint64_t overwritten() const override { return page_.overwritten(); }
  [[nodiscard]] bus::HostPages host(std::uint32_t page) const override { return page_.host(page); }

 private:
  siov::PolledPage page_;
};

// Pages of queues that are not polled cost nothing: nobody touches them.
struct PageFile {
  Fd file;
  std::uint64_t used = 0;
};

}  // namespace

PolledFactory PolledPages() {
  return [shared = std::make_shared<PageFile>()](
             std::uint32_t pages) -> Result<std::unique_ptr<PolledSource>> {
    if (!shared->file.valid())
      shared->file = TRY(siov::PolledPage::CreateFile(siov::kMaxQueues * kPolledStride));
    auto source = std::make_unique<PageSource>(
        TRY(siov::PolledPage::CreateIn(shared->file, shared->used, pages)));
    shared->used += kPolledStride;
    return source;
  };
}

}  // namespace postern::dsa
