/* Refuses every Envoy but the one this module was measured on. The ABI carries no version that a module could ask
 * for, so the running binary's own list of exported callbacks stands in for it. */
#include <dlfcn.h>
#include <elf.h>
#include <inttypes.h>
#include <link.h>
#include <string.h>

#include "module.h"

static const char callback_prefix[] = "envoy_dynamic_module_callback_";

struct symbol_tables {
    const ElfW(Sym) * symbols;
    const char *names;
    const uint32_t *gnu_hash;
    const ElfW(Word) * sysv_hash;
};

struct fingerprint {
    uint64_t sum;
    uint32_t count;
    bool readable;
};

static uint64_t fnv1a(const char *text) {
    uint64_t hash = 0xcbf29ce484222325ULL;
    for (; *text != '\0'; text++)
        hash = (hash ^ (unsigned char)*text) * 0x100000001b3ULL;
    return hash;
}

/* The GNU hash table does not state its length: the last chain of the highest bucket ends the symbol table. */
static uint32_t gnu_symbol_count(const uint32_t *table) {
    uint32_t bucket_count = table[0], first_symbol = table[1], bloom_words = table[2];
    const uint32_t *buckets = (const uint32_t *)((const ElfW(Addr) *)(table + 4) + bloom_words);
    const uint32_t *chains = buckets + bucket_count;
    uint32_t last = 0;
    for (uint32_t bucket = 0; bucket < bucket_count; bucket++)
        if (buckets[bucket] > last)
            last = buckets[bucket];
    if (last < first_symbol)
        return first_symbol;
    while ((chains[last - first_symbol] & 1U) == 0)
        last++;
    return last + 1;
}

static void add_callbacks(const struct symbol_tables *tables, struct fingerprint *found) {
    uint32_t count = tables->gnu_hash != NULL ? gnu_symbol_count(tables->gnu_hash) : tables->sysv_hash[1];
    for (uint32_t index = 0; index < count; index++) {
        const ElfW(Sym) *symbol = &tables->symbols[index];
        const char *name = tables->names + symbol->st_name;
        if (symbol->st_shndx == SHN_UNDEF || strncmp(name, callback_prefix, sizeof callback_prefix - 1) != 0)
            continue;
        found->sum += fnv1a(name);
        found->count++;
    }
    found->readable = true;
}

/* The first object the loader reports is the program itself. */
static int inspect_program(struct dl_phdr_info *info, size_t size, void *data) {
    (void)size;
    const ElfW(Dyn) *dynamic = NULL;
    for (int index = 0; index < info->dlpi_phnum; index++)
        if (info->dlpi_phdr[index].p_type == PT_DYNAMIC)
            dynamic = (const ElfW(Dyn) *)(info->dlpi_addr + info->dlpi_phdr[index].p_vaddr);
    struct symbol_tables tables = {NULL, NULL, NULL, NULL};
    for (; dynamic != NULL && dynamic->d_tag != DT_NULL; dynamic++) {
        /* glibc has relocated these addresses in place; other loaders leave them relative to the load address. */
        ElfW(Addr) address = dynamic->d_un.d_ptr;
        if (address < info->dlpi_addr)
            address += info->dlpi_addr;
        if (dynamic->d_tag == DT_SYMTAB)
            tables.symbols = (const ElfW(Sym) *)address;
        else if (dynamic->d_tag == DT_STRTAB)
            tables.names = (const char *)address;
        else if (dynamic->d_tag == DT_GNU_HASH)
            tables.gnu_hash = (const uint32_t *)address;
        else if (dynamic->d_tag == DT_HASH)
            tables.sysv_hash = (const ElfW(Word) *)address;
    }
    if (tables.symbols != NULL && tables.names != NULL && (tables.gnu_hash != NULL || tables.sysv_hash != NULL))
        add_callbacks(&tables, data);
    return 1;
}

static bool needed_callbacks_exported(void) {
    static const char *const needed[] = {
#define NAME(callback) "envoy_dynamic_module_callback_" #callback,
        SIGNET_NEEDED_CALLBACKS(NAME)
#undef NAME
    };
    bool complete = true;
    for (size_t index = 0; index < sizeof needed / sizeof needed[0]; index++) {
        if (dlsym(RTLD_DEFAULT, needed[index]) != NULL)
            continue;
        log_line(LOG_CRITICAL, "the running program does not export %s", needed[index]);
        complete = false;
    }
    return complete;
}

bool abi_matches_running_envoy(void) {
    struct fingerprint found = {0, 0, false};
    bool complete = needed_callbacks_exported();
    dl_iterate_phdr(inspect_program, &found);
    if (complete && found.readable && found.count == ENVOY_ABI_CALLBACK_COUNT &&
        found.sum == ENVOY_ABI_CALLBACK_FINGERPRINT)
        return true;
    log_line(LOG_CRITICAL,
             "refusing to load: built for Envoy " ENVOY_SUPPORTED_VERSION " (ABI " ENVOY_ABI_VERSION
             ", %u callbacks, fingerprint %016" PRIx64 "), the running program exports %u callbacks, fingerprint %016" PRIx64,
             ENVOY_ABI_CALLBACK_COUNT, (uint64_t)ENVOY_ABI_CALLBACK_FINGERPRINT, found.count, found.sum);
    return false;
}
