#pragma once

// Credit: who may still send how much on one connection (VIRTIO 1.2, 5.10.6.3). All counts are
// free-running and wrap at 2^32; only differences mean anything.

#include <cstdint>

namespace postern::virtio::vsock {

class Credit {
 public:
  // `buf_alloc`: bytes we can hold for the peer.
  explicit Credit(std::uint32_t buf_alloc) : buf_alloc_(buf_alloc) {}

  // --- what the peer sends ---
  [[nodiscard]] std::uint32_t buf_alloc() const { return buf_alloc_; }
  [[nodiscard]] std::uint32_t fwd_cnt() const { return fwd_cnt_; }
  // Whether the peer may have sent `bytes` more. It must not exceed what we announced.
  [[nodiscard]] bool MayReceive(std::uint32_t bytes) const { return bytes <= buf_alloc_ - held(); }
  void Received(std::uint32_t bytes) { rx_cnt_ += bytes; }
  // `bytes` left our buffer.
  void Forwarded(std::uint32_t bytes) { fwd_cnt_ += bytes; }
  // Received and not forwarded; at most buf_alloc().
  [[nodiscard]] std::uint32_t held() const { return rx_cnt_ - fwd_cnt_; }
  // fwd_cnt went out in a packet.
  void Announced() { announced_ = fwd_cnt_; }
  // The peer believes its room smaller than it is by a quarter of the buffer or more: worth a
  // packet of its own.
  [[nodiscard]] bool ShouldAnnounce() const { return fwd_cnt_ - announced_ >= buf_alloc_ / 4; }

  // --- what we send ---
  // From every packet of the peer.
  void Learned(std::uint32_t peer_buf_alloc, std::uint32_t peer_fwd_cnt) {
    peer_buf_alloc_ = peer_buf_alloc;
    peer_fwd_cnt_ = peer_fwd_cnt;
  }
  // 0 also for a peer whose numbers make no sense: more forwarded than sent, or a buffer that
  // shrank below what is under way.
  [[nodiscard]] std::uint32_t MaySend() const {
    const std::uint32_t under_way = tx_cnt_ - peer_fwd_cnt_;
    return under_way < peer_buf_alloc_ ? peer_buf_alloc_ - under_way : 0;
  }
  void Sent(std::uint32_t bytes) { tx_cnt_ += bytes; }

 private:
  std::uint32_t buf_alloc_;
  std::uint32_t rx_cnt_ = 0;
  std::uint32_t fwd_cnt_ = 0;
  std::uint32_t announced_ = 0;
  std::uint32_t peer_buf_alloc_ = 0;
  std::uint32_t peer_fwd_cnt_ = 0;
  std::uint32_t tx_cnt_ = 0;
};

}  // namespace postern::virtio::vsock
