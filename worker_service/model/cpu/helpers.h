// Threads that help whoever has work.
//
// The caller waits for items, never for threads: a helper whose core is lost to something else delays the item that it
// is at, and nothing if it has not begun one. OpenMP's threads are waited for at the end of every region, so on a busy
// machine each of the hundreds of regions of a step takes as long as until the last of them has had a core.

#pragma once

#include <sched.h>

#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>

namespace hotslot {

class Helpers {
 public:
  using Call = void (*)(const void* work, int64_t item);

  static Helpers& of_process() {
    static Helpers* helpers = new Helpers;  // never ended: its threads are not either
    return *helpers;
  }

  // Makes the calls of all items on this thread and up to `num_helpers` others; false, and nothing is done, while the
  // helpers have another caller. Throws what an item threw first, once no item is under way.
  bool share(int64_t num_helpers, int64_t count, Call call, const void* work) {
    const std::unique_lock<std::mutex> only(callers_, std::try_to_lock);
    if (!only.owns_lock()) return false;
    start_threads(num_helpers);
    // Closed first: a helper that comes late from the last job must not take an item of this one by that one's ticket.
    const uint64_t job = (ticket_.load() >> JOB_BITS) + 1;
    ticket_.store(job << JOB_BITS | CLOSED);
    call_.store(call, std::memory_order_relaxed);
    work_.store(work, std::memory_order_relaxed);
    // Whoever sees this count sees that the last job's ticket is closed.
    count_.store(count, std::memory_order_release);
    num_helpers_.store(num_helpers, std::memory_order_relaxed);
    done_.store(0, std::memory_order_relaxed);
    ticket_.store(job << JOB_BITS);
    jobs_.store(static_cast<int>(job));
    jobs_.notify_all();
    take_items();
    for (int64_t turn = 0; done_.load(std::memory_order_acquire) < count; ++turn) pause(turn);
    if (has_failed_.exchange(false)) std::rethrow_exception(std::exchange(failure_, nullptr));
    return true;
  }

 private:
  static constexpr int JOB_BITS = 32;
  static constexpr uint64_t CLOSED = (uint64_t{1} << JOB_BITS) - 1;
  static constexpr int64_t TURNS_AWAKE = 1 << 12;  // some 0.1 ms, longer than what lies between two jobs of a step
  static constexpr int64_t TURNS_OF_A_CORE = 1 << 8;

  static void pause(int64_t turn) {
    if (turn % TURNS_OF_A_CORE == TURNS_OF_A_CORE - 1) {
      sched_yield();
      return;
    }
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

  // What cannot be started, for a limit on threads, does not help; its caller computes all the same.
  void start_threads(int64_t num_helpers) {
    try {
      for (; num_threads_ < num_helpers; ++num_threads_) std::thread([this, n = num_threads_] { help(n); }).detach();
    } catch (const std::system_error&) {
    }
  }

  void help(int64_t number) {
    for (int seen = 0;;) {
      for (int64_t turn = 0; jobs_.load() == seen && turn < TURNS_AWAKE; ++turn) pause(turn);
      jobs_.wait(seen);
      seen = jobs_.load();
      if (number < num_helpers_.load(std::memory_order_relaxed)) take_items();
    }
  }

  void take_items() {
    for (uint64_t ticket = ticket_.load();;) {
      const auto item = static_cast<int64_t>(ticket & CLOSED);
      // Where the count is already a later job's, so is the ticket, and it is not exchanged.
      if (item >= count_.load(std::memory_order_acquire)) return;
      if (!ticket_.compare_exchange_weak(ticket, ticket + 1)) continue;
      try {
        call_.load(std::memory_order_relaxed)(work_.load(std::memory_order_relaxed), item);
      } catch (...) {
        if (!has_failed_.exchange(true)) failure_ = std::current_exception();
      }
      done_.fetch_add(1, std::memory_order_release);
      ticket = ticket_.load();
    }
  }

  std::mutex callers_;
  int64_t num_threads_ = 0;
  std::atomic<uint64_t> ticket_{CLOSED};  // job, and its next item
  std::atomic<int> jobs_{0};
  std::atomic<Call> call_{nullptr};
  std::atomic<const void*> work_{nullptr};
  std::atomic<int64_t> count_{0}, num_helpers_{0}, done_{0};
  std::atomic<bool> has_failed_{false};
  std::exception_ptr failure_;
};

}  // namespace hotslot
