// The compiled half of {fmt} 9, instantiated from the system's headers (see BUILD for why).
#include <fmt/format-inl.h>

template auto fmt::detail::dragonbox::to_decimal(float x) noexcept
    -> fmt::detail::dragonbox::decimal_fp<float>;
template auto fmt::detail::dragonbox::to_decimal(double x) noexcept
    -> fmt::detail::dragonbox::decimal_fp<double>;

template fmt::detail::locale_ref::locale_ref(const std::locale& loc);
template auto fmt::detail::locale_ref::get<std::locale>() const -> std::locale;

template auto fmt::detail::thousands_sep_impl(locale_ref) -> thousands_sep_result<char>;
template auto fmt::detail::decimal_point_impl(locale_ref) -> char;
template void fmt::detail::buffer<char>::append(const char*, const char*);
template void fmt::detail::vformat_to(buffer<char>&, string_view,
                                      basic_format_args<FMT_BUFFER_CONTEXT(char)>, locale_ref);
