"""Bind Xen's user libraries to Python: ``ffi`` generates ``mchannel/_xen.py`` (cffi ABI mode, out of line).

Nothing is compiled: the generated module is plain Python that needs cffi's backend alone, and opens the libraries
when a channel is opened. Declared after Xen's public headers xenstore.h, xenevtchn.h, xengnttab.h and xentoollog.h
(Xen 4.8 on).
"""

from cffi import FFI

ffi = FFI()

ffi.cdef("""
void free(void *memory);
extern void *stderr;

void *xtl_createlogger_stdiostream(void *stream, int least, unsigned int flags);

struct xs_handle *xs_open(unsigned long flags);
void xs_close(struct xs_handle *store);
int xs_fileno(struct xs_handle *store);
void *xs_read(struct xs_handle *store, uint32_t transaction, const char *path, unsigned int *length);
bool xs_write(struct xs_handle *store, uint32_t transaction, const char *path, const void *data, unsigned int length);
bool xs_rm(struct xs_handle *store, uint32_t transaction, const char *path);
char **xs_directory(struct xs_handle *store, uint32_t transaction, const char *path, unsigned int *count);
bool xs_watch(struct xs_handle *store, const char *path, const char *token);
bool xs_unwatch(struct xs_handle *store, const char *path, const char *token);
char **xs_check_watch(struct xs_handle *store);

struct xenevtchn_handle *xenevtchn_open(void *logger, unsigned int flags);
int xenevtchn_close(struct xenevtchn_handle *events);
int xenevtchn_fd(struct xenevtchn_handle *events);
int xenevtchn_notify(struct xenevtchn_handle *events, uint32_t port);
int xenevtchn_bind_unbound_port(struct xenevtchn_handle *events, uint32_t domain);
int xenevtchn_bind_interdomain(struct xenevtchn_handle *events, uint32_t domain, uint32_t port);
int xenevtchn_unbind(struct xenevtchn_handle *events, uint32_t port);
int xenevtchn_pending(struct xenevtchn_handle *events);
int xenevtchn_unmask(struct xenevtchn_handle *events, uint32_t port);

struct xengntdev_handle *xengnttab_open(void *logger, unsigned int flags);
int xengnttab_close(struct xengntdev_handle *table);
void *xengnttab_map_domain_grant_refs(struct xengntdev_handle *table, uint32_t count, uint32_t domain,
                                      uint32_t *references, int protection);
int xengnttab_unmap(struct xengntdev_handle *table, void *start, uint32_t count);

struct xengntdev_handle *xengntshr_open(void *logger, unsigned int flags);
int xengntshr_close(struct xengntdev_handle *table);
void *xengntshr_share_pages(struct xengntdev_handle *table, uint32_t domain, int count, uint32_t *references,
                            int writable);
int xengntshr_unshare(struct xengntdev_handle *table, void *start, uint32_t count);
""")

ffi.set_source("mchannel._xen", None)

if __name__ == "__main__":
    ffi.compile(verbose=True)
