#include "devices/siov/engine/polled_pages.h"

#include <utility>

#include "devices/siov/core/polled_page.h"

namespace postern::dsa {
namespace {

static_assert(siov::PolledPage::kSlots == kPageSlots);

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

}  // namespace

PolledFactory PolledPages() {
  return [](std::uint32_t pages) -> Result<std::unique_ptr<PolledSource>> {
    return std::make_unique<PageSource>(TRY(siov::PolledPage::Create(pages)));
  };
}

}  // namespace postern::dsa
