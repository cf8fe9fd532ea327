#include "iommu/peer_memory.h"

#include <algorithm>
#include <utility>

#include "src/base/failure.h"
#include "src/base/log.h"

namespace postern::iommu {

PeerMemory::Member::~Member() {
  owner_.Leave(*this);
}

std::unique_ptr<PeerMemory::Member> PeerMemory::Join(AddressSpace& space, std::string name) {
  std::unique_ptr<Member> member(new Member(*this, space, std::move(name)));
  if (!space.limits().device_memory) return member;
  const MutexLock lock(mutex_);
  const auto known = std::ranges::find(spaces_, &space, &Space::space);
  if (known != spaces_.end()) {
    ++known->members;
    return member;
  }
  spaces_.push_back({&space, 1});
  for (Piece& piece : pieces_) Map(piece, space);
  return member;
}

void PeerMemory::Leave(const Member& member) {
  const MutexLock lock(mutex_);
  std::erase_if(pieces_, [&](const Piece& piece) {
    if (piece.owner != &member) return false;
    for (AddressSpace* space : piece.in) Unmap(piece, *space);
    return true;
  });
  const auto space = std::ranges::find(spaces_, &member.space_, &Space::space);
  if (space == spaces_.end() || --space->members != 0) return;
  for (Piece& piece : pieces_) {
    if (std::erase(piece.in, space->space) != 0) Unmap(piece, *space->space);
  }
  spaces_.erase(space);
}

void PeerMemory::Member::Offer(std::size_t bar, Iova at, const HostRange& pages,
                               memory::Access access) {
  const MutexLock lock(owner_.mutex_);
  Piece piece{.owner = this, .bar = bar, .at = at, .pages = pages, .access = access, .in = {}};
  for (const Space& space : owner_.spaces_) Map(piece, *space.space);
  // Also one that nobody took: the next address space may.
  owner_.pieces_.push_back(std::move(piece));
}

void PeerMemory::Member::Withdraw(std::size_t bar) {
  const MutexLock lock(owner_.mutex_);
  std::erase_if(owner_.pieces_, [&](const Piece& piece) {
    if (piece.owner != this || piece.bar != bar) return false;
    for (AddressSpace* space : piece.in) Unmap(piece, *space);
    return true;
  });
}

void PeerMemory::Map(Piece& piece, AddressSpace& space) {
  const Result<void> mapped = space.Map(piece.at, piece.pages, piece.access);
  if (mapped) {
    piece.owner->maps_.Add();
    piece.in.push_back(&space);
    return;
  }
  piece.owner->refused_.Add();
  GUEST_LOG("iommu", "{}: BAR {} is not reachable by devices of another address space ({}): {}",
            piece.owner->name_, piece.bar, space.name(), Describe(mapped.error()));
}

void PeerMemory::Unmap(const Piece& piece, AddressSpace& space) {
  const Result<void> unmapped = space.Unmap(piece.at, piece.pages.length);
  if (unmapped) return;
  GUEST_LOG("iommu", "{}: BAR {} stays reachable by other devices ({}): {}", piece.owner->name_,
            piece.bar, space.name(), Describe(unmapped.error()));
}

}  // namespace postern::iommu
