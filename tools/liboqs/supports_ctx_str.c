/*
 * liboqs-python asks the library for this function when it is imported; the release in the crate has the fact that it
 * tells (OQS_SIG.sig_with_ctx_support), and not yet the function.
 */
#include <oqs/sig.h>
#include <stdbool.h>

OQS_API bool OQS_SIG_supports_ctx_str(const char *method_name);

OQS_API bool OQS_SIG_supports_ctx_str(const char *method_name) {
    OQS_SIG *sig = OQS_SIG_new(method_name);
    bool supported = sig != NULL && sig->sig_with_ctx_support;
    OQS_SIG_free(sig);
    return supported;
}
