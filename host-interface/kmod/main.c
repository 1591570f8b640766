// SPDX-License-Identifier: (MIT OR Apache-2.0)
/*
 * pfnguard: a protected hypervisor under the kernel that loads it.
 *
 * Once it is loaded the module stays: the hypervisor cannot be asked to leave.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/device.h>
#include <linux/firmware.h>
#include <linux/module.h>
#include <linux/platform_device.h>

#include "kmod.h"

static char *manifest = "pfnguard/manifest.bin";
module_param(manifest, charp, 0444);
MODULE_PARM_DESC(manifest, "Platform-safety manifest, a file of the firmware directories");

static ulong uart;
module_param(uart, ulong, 0444);
MODULE_PARM_DESC(uart, "Physical address of a PL011 that hears what goes wrong at EL2 (0: none)");

static int __init pfnguard_init(void)
{
	const struct firmware *file;
	struct platform_device *device;
	int ret;

	device = platform_device_register_simple(KBUILD_MODNAME,
						 PLATFORM_DEVID_NONE, NULL, 0);
	if (IS_ERR(device))
		return PTR_ERR(device);
	ret = request_firmware_direct(&file, manifest, &device->dev);
	if (ret) {
		pr_err("cannot load the manifest %s (%d): put one into the firmware directories, or name it with manifest=\n",
		       manifest, ret);
		goto out;
	}
	ret = pfnguard_launch(file->data, file->size, uart);
	release_firmware(file);
out:
	if (ret)
		platform_device_unregister(device);
	return ret;
}
module_init(pfnguard_init);

MODULE_DESCRIPTION("Protected hypervisor that guards memory types");
MODULE_LICENSE("Dual MIT/GPL");
MODULE_FIRMWARE("pfnguard/manifest.bin");
