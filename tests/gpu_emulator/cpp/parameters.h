// What a kernel's parameters are, told by the compiler; and the call through an array of pointers.
#pragma once

namespace emulator {

// kind: p pointer, b bool, i signed, u unsigned, f float, h half, g bfloat16, s anything else.
struct Parameter {
    char kind, element;  // element: the kind of what a pointer points to, v for void
    bool constant;       // points to const
    long size, element_size, element_alignment;
    const char *type;
};

template <class T>
constexpr char kind_of() {
    if (std::is_pointer_v<T>) return 'p';
    if (std::is_void_v<T>) return 'v';
    if (std::is_same_v<T, bool>) return 'b';
    if (std::is_same_v<T, __half>) return 'h';
    if (std::is_same_v<T, __nv_bfloat16>) return 'g';
    if (std::is_floating_point_v<T>) return 'f';
    if (std::is_integral_v<T>) return std::is_signed_v<T> ? 'i' : 'u';
    return 's';
}

template <class T>
const char *type_name() {
    return __PRETTY_FUNCTION__;
}

template <class A>
Parameter describe_one() {
    typedef std::remove_reference_t<std::remove_cv_t<A>> T;
    typedef std::remove_pointer_t<T> E;
    typedef std::remove_cv_t<E> Element;
    typedef std::conditional_t<std::is_void_v<Element> || std::is_function_v<Element>, char, Element>
        Sized;
    static_assert(!std::is_reference_v<A>, "a kernel has no reference parameters");
    static_assert(std::is_trivially_copyable_v<T>, "a kernel's parameter must be copied by bytes");
    return {kind_of<T>(), kind_of<Element>(), std::is_const_v<E>, (long)sizeof(T),
            (long)sizeof(Sized), (long)alignof(Sized), type_name<T>()};
}

template <class... A>
const Parameter *describe(void (*)(A...), int *count) {
    static const Parameter list[] = {describe_one<A>()..., Parameter()};
    *count = sizeof...(A);
    return list;
}

template <class A>
A load(void *address) {
    alignas(A) unsigned char copy[sizeof(A)];
    memcpy(copy, address, sizeof(A));
    return *reinterpret_cast<A *>(copy);
}

template <class... A, size_t... I>
void call_with(void (*kernel)(A...), void **arguments, std::index_sequence<I...>) {
    kernel(load<std::remove_cv_t<A>>(arguments[I])...);
}

template <class... A>
void call(void (*kernel)(A...), void **arguments) {
    call_with(kernel, arguments, std::index_sequence_for<A...>());
}

}  // namespace emulator

#define EMULATOR_KERNEL(number, ...)                                                \
    extern "C" void emulator_call_##number(void **arguments) {                      \
        emulator::call(&__VA_ARGS__, arguments);                                    \
    }                                                                               \
    extern "C" const emulator::Parameter *emulator_describe_##number(int *count) {  \
        return emulator::describe(&__VA_ARGS__, count);                             \
    }
