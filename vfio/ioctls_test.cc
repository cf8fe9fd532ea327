// What the kernel, or a driver behind it, says of regions and interrupts, and what is made of it.

#include "vfio/ioctls.h"

#include <fcntl.h>
#include <linux/vfio.h>

#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

#include "vfio/fake_vfio_kernel.h"

#include <doctest/doctest.h>

namespace postern::vfio {
namespace {

constexpr std::uint64_t kPage = 4096;
constexpr std::uint32_t kMapped =
    VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE | VFIO_REGION_INFO_FLAG_MMAP;
constexpr std::uint32_t kFirst = sizeof(vfio_region_info);

// An answer of GET_REGION_INFO, byte by byte.
struct Answer {
  vfio_region_info info{.argsz = 0,
                        .flags = kMapped | VFIO_REGION_INFO_FLAG_CAPS,
                        .index = 0,
                        .cap_offset = kFirst,
                        .size = 16 * kPage,
                        .offset = 0};
  std::vector<std::uint32_t> words;  // after it

  [[nodiscard]] Result<KernelRegion> Parse(std::uint64_t page_size = kPage) const {
    std::vector<std::byte> bytes(sizeof(info) + words.size() * 4);
    std::memcpy(bytes.data(), &info, sizeof(info));
    if (!words.empty()) std::memcpy(bytes.data() + sizeof(info), words.data(), words.size() * 4);
    return ParseRegion(bytes, page_size);
  }
  void Header(std::uint16_t id, std::uint32_t next) {
    words.push_back(id | 1u << 16);
    words.push_back(next);
  }
  void Sparse(const std::vector<MapArea>& areas, std::uint32_t claimed) {
    Header(VFIO_REGION_INFO_CAP_SPARSE_MMAP, 0);
    words.push_back(claimed);
    words.push_back(0);
    for (const MapArea& area : areas) {
      for (const std::uint64_t value : {area.offset, area.length}) {
        words.push_back(static_cast<std::uint32_t>(value));
        words.push_back(static_cast<std::uint32_t>(value >> 32));
      }
    }
  }
};

TEST_CASE("region: without capabilities, the whole pages of it can be mapped") {
  Answer answer;
  answer.info.flags = kMapped;
  answer.info.size = 3 * kPage + 100;
  answer.info.offset = std::uint64_t{5} << 40;
  const auto region = answer.Parse();
  REQUIRE(region);
  CHECK(region->info.size == 3 * kPage + 100);
  CHECK(region->offset == std::uint64_t{5} << 40);
  CHECK(region->info.readable);
  CHECK(region->info.writable);
  CHECK(region->info.areas == std::vector<MapArea>{{0, 3 * kPage}});
  CHECK_FALSE(region->msix_mappable);

  answer.info.size = kPage - 1;
  CHECK(answer.Parse()->info.areas.empty());
  answer.info.size = kPage;
  CHECK(answer.Parse()->info.areas.size() == 1);
  CHECK(answer.Parse(16 * kPage)->info.areas.empty());  // pages of 64 KiB
  answer.info.flags = VFIO_REGION_INFO_FLAG_READ;
  CHECK(answer.Parse()->info.areas.empty());
  CHECK_FALSE(answer.Parse()->info.writable);
  answer.info.size = 0;
  CHECK(answer.Parse()->info.size == 0);
}

TEST_CASE("region: sizes and offsets past all bounds are refused") {
  Answer answer;
  answer.info.flags = kMapped;
  answer.info.size = kMaxRegionSize;
  CHECK(answer.Parse());
  answer.info.size = kMaxRegionSize + 1;
  CHECK(answer.Parse().error().code == Errc::kBadFormat);
  answer.info.size = ~std::uint64_t{0};
  CHECK(answer.Parse().error().code == Errc::kBadFormat);
  answer.info.size = kPage;
  answer.info.offset = (std::uint64_t{1} << 63) - 1 - kPage;
  CHECK(answer.Parse());
  answer.info.offset += 1;
  CHECK(answer.Parse().error().code == Errc::kBadFormat);
  answer.info.offset = ~std::uint64_t{0};
  CHECK(answer.Parse().error().code == Errc::kBadFormat);
  const std::vector<std::byte> short_answer(sizeof(vfio_region_info) - 1);
  CHECK(ParseRegion(short_answer, kPage).error().code == Errc::kBadFormat);
}

TEST_CASE("region: sparse areas that make no sense are dropped, the others kept in order") {
  Answer answer;
  const std::vector<MapArea> areas = {{8 * kPage, 2 * kPage},  // kept
                                      {0, kPage},              // kept
                                      {kPage, 0},              // empty
                                      {2 * kPage + 1, kPage},  // unaligned
                                      {3 * kPage, kPage / 2},
                                      {9 * kPage, 2 * kPage},   // overlaps the first
                                      {15 * kPage, 2 * kPage},  // ends outside
                                      {17 * kPage, kPage},      // begins outside
                                      {kPage, ~std::uint64_t{0} - kPage + 1},
                                      {std::uint64_t{0} - kPage, 2 * kPage},  // wraps
                                      {15 * kPage, kPage}};                   // kept: ends with it
  answer.Sparse(areas, static_cast<std::uint32_t>(areas.size()));
  const auto region = answer.Parse();
  REQUIRE(region);
  CHECK(region->info.areas ==
        std::vector<MapArea>{{0, kPage}, {8 * kPage, 2 * kPage}, {15 * kPage, kPage}});
  CHECK(region->dropped_areas == 8);

  Answer none;
  none.Sparse({}, 0);
  REQUIRE(none.Parse());
  CHECK(none.Parse()->info.areas.empty());  // sparse, and nothing in it: all is trapped
}

TEST_CASE("region: more sparse areas than bytes are refused, more than a VM has slots are cut") {
  for (const std::uint32_t claimed : {2u, 0x10000000u, 0x10000001u, ~0u}) {
    CAPTURE(claimed);
    Answer answer;
    answer.Sparse({{0, kPage}}, claimed);
    CHECK(answer.Parse().error().code == Errc::kBadFormat);
  }
  Answer many;
  std::vector<MapArea> areas;
  for (std::uint64_t i = 0; i < 1000; ++i) areas.push_back({2 * i * kPage, kPage});
  many.info.size = 2000 * kPage;
  many.Sparse(areas, 1000);
  REQUIRE(many.Parse());
  CHECK(many.Parse()->info.areas.size() == 256);
  CHECK(many.Parse()->dropped_areas == 744);
}

TEST_CASE("region: capabilities are read, unknown ones skipped") {
  Answer answer;
  answer.Header(77, kFirst + 8);
  answer.Header(VFIO_REGION_INFO_CAP_TYPE, kFirst + 24);
  answer.words.push_back(0x80008086);
  answer.words.push_back(3);
  answer.Header(VFIO_REGION_INFO_CAP_MSIX_MAPPABLE, 0);
  const auto region = answer.Parse();
  REQUIRE(region);
  CHECK(region->type == 0x80008086);
  CHECK(region->subtype == 3);
  CHECK(region->msix_mappable);
  CHECK(region->info.areas.size() == 1);
  answer.info.cap_offset = 0;  // the flag, and no chain
  CHECK_FALSE(answer.Parse()->msix_mappable);
}

TEST_CASE("region: a chain that loops, goes back, leaves the answer or is cut off is refused") {
  for (const std::uint32_t first : {1u, 4u, kFirst - 4, kFirst + 2, kFirst + 1, kFirst + 16,
                                    kFirst + 12, 4096u, 0xfffffffcu, ~0u}) {
    CAPTURE(first);
    Answer answer;
    answer.Header(77, 0);
    answer.Header(77, 0);
    answer.info.cap_offset = first;
    CHECK_FALSE(answer.Parse());
  }
  for (const std::uint32_t next : {kFirst, kFirst + 4, kFirst - 4, 1u, 0xfffffffcu}) {
    CAPTURE(next);
    Answer answer;
    answer.Header(77, kFirst + 8);
    answer.Header(77, next);
    CHECK_FALSE(answer.Parse());
  }
  Answer type;
  type.Header(VFIO_REGION_INFO_CAP_TYPE, 0);
  type.words.push_back(1);
  CHECK(type.Parse().error().code == Errc::kBadFormat);
  Answer sparse;
  sparse.Header(VFIO_REGION_INFO_CAP_SPARSE_MMAP, 0);
  sparse.words.push_back(0);
  CHECK(sparse.Parse().error().code == Errc::kBadFormat);
  Answer twice;
  twice.Sparse({}, 0);
  twice.words[1] = kFirst + 16;
  twice.Sparse({}, 0);
  CHECK(twice.Parse().error().code == Errc::kBadFormat);
}

TEST_CASE("irq: counts over what PCI allows are cut") {
  struct Row {
    std::uint32_t index, count, expected;
  };
  for (const Row& row : {Row{kIntxIrq, 0, 0},
                         {kIntxIrq, 1, 1},
                         {kIntxIrq, 2, 1},
                         {kMsiIrq, 32, 32},
                         {kMsiIrq, 33, 32},
                         {kMsiIrq, ~0u, 32},
                         {kMsixIrq, 2048, 2048},
                         {kMsixIrq, 2049, 2048},
                         {kMsixIrq, ~0u, 2048},
                         {kErrorIrq, 7, 1},
                         {kRequestIrq, ~0u, 1}}) {
    CAPTURE(row.index);
    CAPTURE(row.count);
    const vfio_irq_info info{.argsz = sizeof(info),
                             .flags = VFIO_IRQ_INFO_EVENTFD | VFIO_IRQ_INFO_NORESIZE,
                             .index = row.index,
                             .count = row.count};
    const auto irq = ParseIrq(row.index, std::as_bytes(std::span(&info, 1)));
    REQUIRE(irq);
    CHECK(irq->count == row.expected);
    CHECK(irq->eventfd);
    CHECK(irq->noresize);
    CHECK_FALSE(irq->maskable);
    CHECK_FALSE(irq->automasked);
  }
  CHECK(ParseIrq(0, std::vector<std::byte>(15)).error().code == Errc::kBadFormat);
}

// A device opened by hand.
struct Opened {
  FakeVfioKernel kernel;
  FakeVfioDevice& device = kernel.AddDevice("0000:3b:00.0", 12);
  Fd container, group, fd;
  Opened() {
    container = *kernel.Open("/dev/vfio/vfio", O_RDWR);
    group = *kernel.Open("/dev/vfio/12", O_RDWR);
    int number = container.get();
    REQUIRE(kernel.Ioctl(group.get(), VFIO_GROUP_SET_CONTAINER, &number, "set"));
    REQUIRE(kernel.IoctlRaw(container.get(), VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU, "iommu"));
    fd = *GroupGetDevice(kernel, group.get(), "0000:3b:00.0");
  }
};

TEST_CASE("region: the answer is asked for again when capabilities did not fit") {
  Opened opened;
  opened.device.regions[2] = {
      .size = 4 * kPage, .flags = kMapped, .sparse = {{{0, kPage}, {2 * kPage, kPage}}}};
  (void)opened.kernel.TakeLog();
  const auto region = GetRegion(opened.kernel, opened.fd.get(), 2, kPage);
  REQUIRE(region);
  CHECK(region->info.areas == std::vector<MapArea>{{0, kPage}, {2 * kPage, kPage}});
  CHECK(opened.kernel.TakeLog() ==
        std::vector<std::string>{"VFIO_DEVICE_GET_REGION_INFO", "VFIO_DEVICE_GET_REGION_INFO"});
}

TEST_CASE("region: an answer that never fits is refused, one that is missing is no region") {
  Opened opened;
  opened.device.regions[3].raw.assign(std::size_t{2} << 20, std::byte{0});
  CHECK_FALSE(GetRegion(opened.kernel, opened.fd.get(), 3, kPage));
  opened.device.regions[4].error = EINVAL;
  const auto absent = GetRegion(opened.kernel, opened.fd.get(), 4, kPage);
  REQUIRE(absent);
  CHECK(absent->info.size == 0);
  opened.device.regions[4].error = EIO;
  CHECK(GetRegion(opened.kernel, opened.fd.get(), 4, kPage).error().sys_errno == EIO);
  opened.device.gone = true;
  CHECK(GetRegion(opened.kernel, opened.fd.get(), 0, kPage).error().sys_errno == ENODEV);
}

TEST_CASE("probe: tells groups, device files, open devices, containers and strangers apart") {
  Opened opened;
  const auto kind = [&](const Fd& fd) { return ProbeFile(opened.kernel, fd.get()); };
  CHECK(kind(opened.container) == FileKind::kContainer);
  CHECK(kind(opened.group) == FileKind::kGroup);
  CHECK(kind(opened.fd) == FileKind::kOpenDevice);
  CHECK(kind(*opened.kernel.Open("/dev/vfio/devices/vfio0", O_RDWR)) == FileKind::kUnboundDevice);
  CHECK(kind(Fd(open("/dev/null", O_RDWR | O_CLOEXEC))) == FileKind::kOther);
  CHECK(ProbeFile(SystemCalls(), Fd(open("/dev/null", O_RDWR | O_CLOEXEC)).get()) ==
        FileKind::kOther);
}

TEST_CASE("irqs: no vectors and more than there can be are refused before the kernel") {
  Opened opened;
  (void)opened.kernel.TakeLog();
  CHECK_FALSE(SetIrqs(opened.kernel, opened.fd.get(), IrqAction::kTrigger, kMsixIrq, 0, {}));
  const std::vector<int> many(2049, -1);
  CHECK_FALSE(SetIrqs(opened.kernel, opened.fd.get(), IrqAction::kTrigger, kMsixIrq, 0, many));
  CHECK(opened.kernel.TakeLog().empty());
}

}  // namespace
}  // namespace postern::vfio
