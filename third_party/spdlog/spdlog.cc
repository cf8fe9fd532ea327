// The compiled part of spdlog 1.10 that src/base/log.cc needs, instantiated from the system's
// headers (see BUILD for why): messages, pattern formatting and the sink base class. Loggers and
// the registry are not: log.cc keeps its own level and sink.
#include <mutex>

#include <spdlog/common-inl.h>
#include <spdlog/details/log_msg-inl.h>
#include <spdlog/details/log_msg_buffer-inl.h>
#include <spdlog/details/null_mutex.h>
#include <spdlog/details/os-inl.h>
#include <spdlog/pattern_formatter-inl.h>
#include <spdlog/sinks/base_sink-inl.h>
#include <spdlog/sinks/sink-inl.h>

template class spdlog::sinks::base_sink<std::mutex>;
template class spdlog::sinks::base_sink<spdlog::details::null_mutex>;
