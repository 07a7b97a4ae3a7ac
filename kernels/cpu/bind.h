// Every .cpp file here defines one bind_<op>, called by bind.cpp. Tensors arrive as addresses.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>

namespace selfguide {

template <typename T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

void bind_attention(nanobind::module_& m);
void bind_cross_entropy(nanobind::module_& m);
void bind_linear(nanobind::module_& m);
void bind_lora(nanobind::module_& m);
void bind_norm(nanobind::module_& m);
void bind_paged_attention(nanobind::module_& m);
void bind_rope(nanobind::module_& m);
void bind_swiglu(nanobind::module_& m);
void bind_sampling(nanobind::module_& m);

}  // namespace selfguide
