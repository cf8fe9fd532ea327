#pragma once

// Mutex, MutexLock and the thread-safety annotations clang checks (-Wthread-safety). Every mutex
// here is a leaf unless its declaration says otherwise: nothing that can block is called while one
// is held.

#include <mutex>

#if defined(__clang__)
#define POSTERN_TSA(x) __attribute__((x))
#else
#define POSTERN_TSA(x)
#endif
#define CAPABILITY(x) POSTERN_TSA(capability(x))
#define SCOPED_CAPABILITY POSTERN_TSA(scoped_lockable)
#define GUARDED_BY(x) POSTERN_TSA(guarded_by(x))
#define PT_GUARDED_BY(x) POSTERN_TSA(pt_guarded_by(x))
#define REQUIRES(...) POSTERN_TSA(requires_capability(__VA_ARGS__))
#define EXCLUDES(...) POSTERN_TSA(locks_excluded(__VA_ARGS__))
#define ACQUIRE(...) POSTERN_TSA(acquire_capability(__VA_ARGS__))
#define TRY_ACQUIRE(...) POSTERN_TSA(try_acquire_capability(__VA_ARGS__))
#define RELEASE(...) POSTERN_TSA(release_capability(__VA_ARGS__))
#define RETURN_CAPABILITY(x) POSTERN_TSA(lock_returned(x))
#define NO_THREAD_SAFETY_ANALYSIS POSTERN_TSA(no_thread_safety_analysis)

namespace postern {

class CAPABILITY("mutex") Mutex {
 public:
  Mutex() = default;
  Mutex(const Mutex&) = delete;
  Mutex& operator=(const Mutex&) = delete;
  void Lock() ACQUIRE() { mutex_.lock(); }
  void Unlock() RELEASE() { mutex_.unlock(); }
  // True: it is locked now, by this call.
  [[nodiscard]] bool TryLock() TRY_ACQUIRE(true) { return mutex_.try_lock(); }
  // For std::condition_variable_any.
  void lock() ACQUIRE() { mutex_.lock(); }
  void unlock() RELEASE() { mutex_.unlock(); }

 private:
  std::mutex mutex_;
};

class SCOPED_CAPABILITY MutexLock {
 public:
  explicit MutexLock(Mutex& mutex) ACQUIRE(mutex) : mutex_(mutex) { mutex_.Lock(); }
  ~MutexLock() RELEASE() { mutex_.Unlock(); }
  MutexLock(const MutexLock&) = delete;
  MutexLock& operator=(const MutexLock&) = delete;

 private:
  Mutex& mutex_;
};

}  // namespace postern
